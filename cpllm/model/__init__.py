"""The two towers, the decoder, and CP-LLM itself."""
