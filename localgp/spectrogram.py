"""Log-mel features in NumPy, as OWSM's front end sees them: 80 mel bands, 25 ms windows, 10 ms apart.

Shape legend: N samples, S feature frames (100 per second), F mel bands, T encoder frames (25 per second).
"""

from __future__ import annotations

from functools import cache

import numpy as np

SAMPLE_RATE, N_FFT, WINDOW, HOP, BANDS = 16_000, 512, 400, 160, 80
_FLOOR = 1e-10


@cache
def mel_filters() -> np.ndarray:
    """Triangles on Slaney's mel scale up to the Nyquist frequency, (F, N_FFT / 2 + 1), each of unit area."""
    linear_hz, step, log_step = 1000.0, 200 / 3, np.log(6.4) / 27
    knee = linear_hz / step
    top = knee + np.log(SAMPLE_RATE / 2 / linear_hz) / log_step
    mel = np.linspace(0.0, top, BANDS + 2)
    edges = np.where(mel < knee, mel * step, linear_hz * np.exp(log_step * (mel - knee)))
    bins = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def band_centres() -> np.ndarray:
    """Hz at which each mel band is widest open, (F,)."""
    return mel_filters().argmax(1) * (SAMPLE_RATE / N_FFT)


def log_mel(samples_N: np.ndarray) -> np.ndarray:
    """Power in dB, (F, S); frame s is centred on sample s * HOP.

    Examples:
        >>> log_mel(np.zeros(16_000)).shape
        (80, 101)
    """
    padded = np.pad(samples_N.astype(np.float32), N_FFT // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    window = np.pad(np.hanning(WINDOW + 1)[:-1], (N_FFT - WINDOW) // 2).astype(np.float32)
    power = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2
    return 10 * np.log10(mel_filters() @ power.T + _FLOOR)


def frame_levels(samples_N: np.ndarray, centre_T: np.ndarray) -> np.ndarray:
    """Energy VAD's measure: level in dB of the samples nearest to the centre of each encoder frame, (T,).

    Args:
        centre_T: Seconds at the middle of what each frame sees.

    Examples:
        >>> loud = np.repeat([0.0, 0.5, 0.0], [640, 640, 3920])  # 40 ms to 80 ms; frame 1 is centred on 70 ms
        >>> frame_levels(loud, 0.03 + 0.04 * np.arange(7))[:3].round(1).tolist()
        [-12.0, -7.3, -100.0]
    """
    step = (centre_T[1] - centre_T[0]) * SAMPLE_RATE
    starts = centre_T * SAMPLE_RATE - step / 2
    edges = np.round(np.append(starts, starts[-1] + step)).astype(int).clip(min=0)
    energy = np.concatenate([[0.0], np.cumsum(samples_N.astype(np.float64) ** 2)])
    clipped = np.minimum(edges, len(samples_N))
    mean = (energy[clipped[1:]] - energy[clipped[:-1]]) / np.maximum(1, np.diff(edges))
    return 10 * np.log10(np.maximum(mean, 0) + _FLOOR)  # a running sum may fall by its rounding error
