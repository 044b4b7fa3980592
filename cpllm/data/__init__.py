"""From scenes and files to labelled, decoded, batched video. Nothing here imports JAX."""

import os


def without_avx512() -> None:
    """NumPy in processes started from now on, and here if it isn't imported yet, as elsewhere.

    Its last bits differ with AVX-512, and some pixels of scenes with them.
    """
    os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "X86_V4 AVX512_ICL AVX512_SPR")
