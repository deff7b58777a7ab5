"""Channels to one.

Shape legend: N samples, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localgp.corpora.audio_errors import Remark

# What reaches the centre, as in ITU-R BS.775 and FFmpeg: the front pair and the surround channels 3 and 6 dB down.
# The channel for low-frequency effects carries no speech.
_FRONT, _SURROUND = 0.5**0.5, 0.5
_WEIGHTS = {"FC": 1.0, "LFE": 0.0, "LFE2": 0.0} | dict.fromkeys(("FL", "FR", "FLC", "FRC"), _FRONT)

# What files without named channels hold by convention. An array of as many microphones loses one of them.
_BY_CONVENTION = {
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}

# A channel whose peak is this much (-60 dB) under the loudest one's was not connected: lossy codecs leave
# traces in channels that were all zero before.
_EMPTY = 1e-3

# Correlation with the loudest channel from which on a channel is the same sound with the sign turned. Independent
# voices are at 0; wide stereo rarely passes -0.3.
_OPPOSED = -0.7


def mix(samples_NC: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[Remark]]:
    """The weighted mean over the channels that carry signal, (N, C) -> (N,).

    Channels that are empty are left out: in some recordings one side of a stereo pair is silent, and averaging it
    in would halve the level. So are channels whose sign is turned against the loudest one's, which they would
    cancel.

    Args:
        samples_NC: Full scale 1.
        names: FFmpeg's short name of each channel, such as ``FL``; others where they are unknown.
    """
    channels = samples_NC.shape[1]
    if channels == 1:
        return np.ascontiguousarray(samples_NC[:, 0]), []
    if len(samples_NC) == 0:
        return np.zeros(0, dtype=np.float32), []
    peak_C = np.maximum(samples_NC.max(axis=0), -samples_NC.min(axis=0))
    weight_C = _weights(names)
    # Negated, since comparisons with NaN are false, and NaN must stay to be found.
    heard_C = ~(peak_C <= _EMPTY * peak_C[weight_C > 0].max(initial=0.0))
    if not (weight_C * heard_C).any():  # nothing, or low-frequency effects alone
        weight_C, heard_C = np.ones(channels), ~(peak_C < peak_C.max())
    weight_C = weight_C * heard_C
    opposed = _opposed(samples_NC, weight_C)
    weight_C[opposed] = 0.0
    mono_N = samples_NC @ (weight_C / weight_C.sum()).astype(np.float32)
    if not opposed:
        return mono_N, []
    left_out = ", ".join(str(channel + 1) for channel in opposed)
    what = (
        f"channel {left_out} of {channels} is"
        if len(opposed) == 1
        else f"channels {left_out} of {channels} are"
    )
    detail = f"{what} left out: the sign is turned against the loudest channel's, and they would cancel"
    return mono_N, [Remark("channels of opposed phases", detail)]


def _weights(names: Sequence[str]) -> np.ndarray:
    if not any(name in _WEIGHTS for name in names):
        if len(names) not in _BY_CONVENTION:
            return np.ones(len(names))
        names = _BY_CONVENTION[len(names)]
    return np.array([_WEIGHTS.get(name, _SURROUND) for name in names])


def _opposed(samples_NC: np.ndarray, weight_C: np.ndarray) -> list[int]:
    """The channels, among those with weight, that mirror the loudest."""
    live = np.flatnonzero(weight_C)
    if len(live) < 2:
        return []
    mean_C = samples_NC.mean(axis=0, dtype=np.float64)
    power_C = np.array([np.vdot(samples_NC[:, c], samples_NC[:, c]) for c in range(samples_NC.shape[1])])
    power_C = power_C / len(samples_NC) - mean_C**2
    # Of equals, which rounding tells apart, the first.
    loudest = next((c for c in live if power_C[c] > 0.98 * power_C[live].max()), live[0])
    opposed = []
    for channel in live:
        common = np.vdot(samples_NC[:, loudest], samples_NC[:, channel]) / len(samples_NC)
        common -= mean_C[loudest] * mean_C[channel]
        scale = np.sqrt(max(power_C[loudest] * power_C[channel], 0.0))
        if common < _OPPOSED * scale:  # false for NaN
            opposed.append(int(channel))
    return opposed
