"""CP-LLM: context and pixel aware video quality assessment.

>>> import cpllm
>>> model = cpllm.load()  # doctest: +SKIP
>>> model.score("my.mp4").score  # doctest: +SKIP
73.4
"""

from importlib import import_module

__all__ = ["compare", "describe", "heatmap", "ladder", "load", "score"]
__version__ = "0.1.0"


def __getattr__(name: str):
    """`load` and the one-call helpers, imported on first use: importing costs no JAX."""
    if name in __all__:
        home = "cpllm.damage" if name == "heatmap" else "cpllm.judge"
        return getattr(import_module(home), name)
    raise AttributeError(f"module 'cpllm' has no attribute {name!r}")
