"""The gates of one dev utterance as a picture in the training log, so that one can watch them close.

Shape legend: L layers, M gated modules, T encoder frames, F mel bands, H x W x 3 picture.
"""

from __future__ import annotations

from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from localgp.contexts.extract import RowContexts, stack_contexts
from localgp.corpora.integrity import read_row
from localgp.model import GatedS2T
from localgp.spectrogram import log_mel

_OPEN, _CLOSED, _LINE = (230, 159, 0), (255, 255, 255), (120, 120, 120)
_FRAME_PIXELS, _LAYER_PIXELS, _GAP_PIXELS = 4, 8, 4


class MaskImage(Callback):
    """Logs log-mel spectrogram over masks at every dev scoring, to TensorBoard or Weights & Biases.

    Args:
        rows: A prepared dev split; its first row is the utterance, in every run on that corpus the same.
        model: For the length of its input.
        contexts: Of the row, where the gates see any.
    """

    def __init__(self, rows: Any, model: GatedS2T, contexts: RowContexts | None = None) -> None:
        row = read_row(rows, 0)
        self.utt_id: str = row["utt_id"]
        size = model.samples
        samples = np.asarray(row["samples"], dtype=np.float32)[:size] / 32768.0
        self.speech = np.zeros(size, dtype=np.float32)
        self.speech[: len(samples)] = samples
        self.end = len(samples)
        self.signal_share = self.end / int(model.heard(torch.tensor([self.end])))
        self.contexts = None
        if contexts is not None:
            self.contexts = stack_contexts([contexts.of(row, 0, size, model.backbone.timeline)])

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or not trainer.loggers:
            return
        model = cast(GatedS2T, module.model)
        speech = torch.from_numpy(self.speech).to(module.device).unsqueeze(0)
        ends = torch.tensor([self.end], device=module.device)
        with torch.inference_mode():
            given = None
            if self.contexts is not None:
                given = {name: value.to(module.device) for name, value in self.contexts.items()}
            encoded = model.encode(speech, ends, given)
        if not encoded.gates:
            return
        frames = encoded.x.shape[1]
        masks_MLT = np.stack(
            [
                np.stack([layer[name].mask.expand(1, frames)[0].cpu().numpy() for layer in encoded.gates])
                for name in encoded.gates[0]
            ]
        )
        heard = self.speech[: round(self.end / self.signal_share)]
        picture = mask_picture(log_mel(heard), masks_MLT, self.signal_share)
        title = f"masks/{self.utt_id} ({', '.join(encoded.gates[0])} from the top)"
        for logger in trainer.loggers:
            log_picture(logger, title, picture, trainer.global_step)


def log_picture(logger: Any, title: str, picture_HWC: np.ndarray, step: int) -> None:
    """To whichever kind of logger takes pictures; others are left alone."""
    if hasattr(logger, "log_image"):  # Weights & Biases
        logger.log_image(key=title, images=[picture_HWC], step=step)
    elif hasattr(logger.experiment, "add_image"):  # TensorBoard
        logger.experiment.add_image(title, picture_HWC, step, dataformats="HWC")


def mask_picture(levels_FS: np.ndarray, masks_MLT: np.ndarray, signal_share: float) -> np.ndarray:
    """Spectrogram on top, one block for each module under it, its first layer at the bottom; uint8 (H, W, 3).

    Args:
        levels_FS: dB, at four feature frames an encoder frame or nearly so.
        signal_share: Where the signal ends, as a share of the width: a vertical line.
    """
    from matplotlib import colormaps

    width = masks_MLT.shape[-1] * _FRAME_PIXELS
    columns = np.minimum(np.arange(width) * levels_FS.shape[1] // width, levels_FS.shape[1] - 1)
    high = np.quantile(levels_FS, 0.995)
    shown = np.clip((levels_FS[::-1, columns] - high + 60) / 60, 0, 1)
    blocks = [(colormaps["cividis"](shown)[..., :3] * 255).astype(np.uint8)]
    for mask_LT in masks_MLT:
        pixels = mask_LT[::-1].repeat(_LAYER_PIXELS, axis=0).repeat(_FRAME_PIXELS, axis=1)
        block = np.where(pixels[..., None], np.array(_OPEN, np.uint8), np.array(_CLOSED, np.uint8))
        block[_LAYER_PIXELS - 1 :: _LAYER_PIXELS] = _LINE
        blocks += [np.full((_GAP_PIXELS, width, 3), _LINE, dtype=np.uint8), block]
    picture = np.concatenate(blocks)
    end = round(signal_share * width)
    if 0 < end < width:
        picture[:, end] = _LINE
    return picture
