"""From scenes and files to labelled, decoded, batched video. Nothing here imports JAX."""
