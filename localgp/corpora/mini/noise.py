"""Background noise of a few kinds, from a random generator alone."""

from __future__ import annotations

import numpy as np

KINDS = ("clean", "white", "pink", "babble", "hum", "modulated")
_MAX_PEAK = 0.95


def draw_noise(rng: np.random.Generator) -> tuple[str, float]:
    """A kind and a signal-to-noise ratio in dB, infinite for ``clean``."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    return kind, float("inf") if kind == "clean" else float(rng.uniform(5, 30))


def add_noise(
    samples: np.ndarray, kind: str, snr_db: float, rate: int, rng: np.random.Generator
) -> np.ndarray:
    """Samples (time,) in noise; the ratio counts the speech alone, not its pauses (which are exact zeros)."""
    if kind != "clean":
        speech_rms = np.sqrt(np.mean(samples[samples != 0] ** 2))
        samples = samples + speech_rms * 10 ** (-snr_db / 20) * make_noise(kind, len(samples), rate, rng)
    return samples * min(1.0, _MAX_PEAK / float(np.abs(samples).max()))


def make_noise(kind: str, length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit power, float64 (length,); zeros for ``clean``.

    Args:
        kind: ``white``; ``pink`` (falls 3 dB an octave); ``babble`` (speech-shaped, with the loudness of many
            syllables at once); ``hum`` (mains and its harmonics over some hiss); ``modulated`` (pink in slow
            swells, as of traffic).
    """
    if kind == "clean":
        return np.zeros(length)
    time = np.arange(length) / rate
    if kind == "white":
        noise = rng.standard_normal(length)
    elif kind == "pink":
        noise = _shaped(length, rate, rng, exponent=0.5)
    elif kind == "babble":
        noise = sum(
            (
                _shaped(length, rate, rng, exponent=1.0, low=120, high=3800) * _syllables(length, rate, rng)
                for _ in range(4)
            ),
            np.zeros(length),
        )
    elif kind == "hum":
        base = float(rng.choice([50.0, 100.0]))
        noise = 0.15 * rng.standard_normal(length)
        for harmonic in range(1, 9):
            noise += np.sin(2 * np.pi * (base * harmonic * time + rng.random())) / harmonic
    elif kind == "modulated":
        swell = 1 + 0.8 * np.sin(2 * np.pi * (rng.uniform(0.2, 0.8) * time + rng.random()))
        noise = _shaped(length, rate, rng, exponent=0.7) * swell
    else:
        raise ValueError(f"unknown noise kind {kind!r}: valid are {', '.join(KINDS)}")
    return noise / np.sqrt(np.mean(noise**2) + 1e-12)


def _shaped(
    length: int,
    rate: int,
    rng: np.random.Generator,
    exponent: float,
    low: float = 20.0,
    high: float | None = None,
) -> np.ndarray:
    """Gaussian noise with amplitude falling as frequency to the ``exponent``, within a band."""
    from scipy.fft import irfft, next_fast_len, rfft

    padded = next_fast_len(length, real=True)
    spectrum = rfft(rng.standard_normal(padded))
    frequency = np.fft.rfftfreq(padded, 1 / rate)
    gain = np.maximum(frequency, low) ** -exponent
    gain[frequency < low] = 0.0
    if high is not None:
        gain[frequency > high] *= 0.05
    shaped = irfft(spectrum * gain, padded)[:length]
    return shaped / (np.sqrt(np.mean(shaped**2)) + 1e-12)


def _syllables(length: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A loudness curve that rises and falls about four times a second."""
    points = max(4, int(length / rate * 8) + 2)
    return np.interp(np.linspace(0, points - 1, length), np.arange(points), rng.random(points) ** 2)
