"""Whisper's features, as its `WhisperFeatureExtractor` makes them, in PyTorch and on any device.

Shape legend: B utterances, N samples, S feature frames, F mel bins, K frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

HOP, WINDOW = 160, 400  # samples at 16 kHz, 10 and 25 ms
RATE = 16_000
FLOOR = 1e-10  # of the power in a bin
RANGE = 8.0  # powers of ten below the loudest bin that are kept


class LogMel:
    """Log power in mel bins, all within eight powers of ten below the recording's loudest, scaled to about [-1, 1].

    Args:
        bins: F.

    Examples:
        >>> LogMel(80)(torch.zeros(1, 16_000)).shape
        torch.Size([1, 100, 80])
    """

    def __init__(self, bins: int) -> None:
        from transformers.audio_utils import mel_filter_bank

        filters_KF = mel_filter_bank(
            num_frequency_bins=1 + WINDOW // 2,
            num_mel_filters=bins,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self._filters_FK = torch.from_numpy(filters_KF).float().t()
        self._window = torch.hann_window(WINDOW)

    def __call__(self, speech_BN: Tensor) -> Tensor:
        """Speech to (B, S, F): a frame for each whole hop; the STFT's last one is left out."""
        self._filters_FK, self._window = (x.to(speech_BN.device) for x in (self._filters_FK, self._window))
        stft_BKS = torch.stft(speech_BN.float(), WINDOW, HOP, window=self._window, return_complex=True)
        frames = speech_BN.shape[1] // HOP
        power_BKS = (stft_BKS[..., :frames].abs() ** 2).contiguous()
        log_BFS = (self._filters_FK @ power_BKS).clamp(min=FLOOR).log10()
        loudest_B11 = log_BFS.amax(dim=(1, 2), keepdim=True)
        return ((torch.maximum(log_BFS, loudest_B11 - RANGE) + 4.0) / 4.0).transpose(1, 2)
