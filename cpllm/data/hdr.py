"""High dynamic range to what a viewer without an HDR display sees: ITU-R BT.2100's PQ and HLG.

Not specified in the paper, whose Shorts-HDR2SDR is tone-mapped already. We map each frame by one
curve that depends on no other frame or clip, the one that built-in HDR scenes go through: an
extended Reinhard with highlights up to PEAK, channel by channel.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

PEAK, WHITE = 1000.0, 203.0
"""cd/m²: of HLG's nominal display (BT.2100), and of a diffuse white (BT.2408). What a PQ film has
above the peak is white."""

LUMA = np.array([0.2627, 0.6780, 0.0593], np.float32)
TO_709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083],
                   [-0.0182, -0.1006, 1.1187]], np.float32)
"""Linear light of BT.2020's primaries in those of BT.709 (BT.2087); what is left negative is 0."""

OFFSET, EXTENT = np.float32((16, 128, 128)), np.float32((219, 224, 224))
"""Of limited-range Y, Cb and Cr, in 8-bit units (BT.2100, Table 9)."""

BAND = 64
"""Lines at a time, so that floats take no memory worth a word."""


def pq(signal: np.ndarray) -> np.ndarray:
    """Luminance in cd/m², up to 10,000, of a PQ signal in [0, 1] (SMPTE ST 2084).

    >>> pq(np.array([0, 0.50808, 1])).round().tolist()
    [0.0, 100.0, 10000.0]
    """
    from cpllm.data.scenes import pq_decode  # which draws: who only scores a file need not load it

    return pq_decode(1023 * signal)


def hlg(signal: np.ndarray) -> np.ndarray:
    """Luminance in cd/m² on a display of PEAK of an HLG signal [..., RGB] in [0, 1] (BT.2100).

    Scene light E = S²/3 up to S = 1/2, else (exp((S − c)/a) + b)/12; display light is
    PEAK · Y^0.2 · E, Y the scene's luminance.

    >>> hlg(np.full(3, 0.75)).round().tolist(), hlg(np.ones(3)).round().tolist()
    ([203.0, 203.0, 203.0], [1000.0, 1000.0, 1000.0])
    """
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return PEAK * (scene @ LUMA)[..., None] ** 0.2 * scene


def to_sdr(yuv: np.ndarray, curve: Callable[[np.ndarray], np.ndarray], wide: bool) -> np.ndarray:
    """Limited-range uint16[H, W, YCbCr] to uint8[H, W, RGB] of BT.709 and BT.1886 (gamma 2.4).

    By BT.2020's non-constant-luminance matrix: BT.2100 has no other of this kind. curve: `pq` or
    `hlg`; wide: the primaries are BT.2020's, else BT.709's.
    """
    bands = [yuv[at:at + BAND] for at in range(0, len(yuv), BAND)]
    return np.concatenate([_tone(curve(_rgb(band)), wide) for band in bands])


def _rgb(yuv: np.ndarray) -> np.ndarray:
    """R'G'B' float32[H, W, 3] in [0, 1]. swscale's in 16 bits is wrong in colour or white."""
    y, pb, pr = np.moveaxis((yuv.astype(np.float32) / 256 - OFFSET) / EXTENT, -1, 0)
    r, b = y + 1.4746 * pr, y + 1.8814 * pb
    return np.clip(np.stack([r, (y - LUMA[0] * r - LUMA[2] * b) / LUMA[1], b], -1), 0, 1)


def _tone(light: np.ndarray, wide: bool) -> np.ndarray:
    """uint8 of display light in cd/m²: x(1 + x/w²)/(1 + x), x in diffuse whites, 1 at w = PEAK."""
    x, w = np.maximum(light @ TO_709.T if wide else light, 0) / WHITE, PEAK / WHITE
    sdr = x * (1 + x / w**2) / (1 + x)
    return (255 * np.clip(sdr, 0, 1) ** (1 / 2.4) + 0.5).astype(np.uint8)
