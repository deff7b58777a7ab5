"""SpeechPrune around `transformers`' Qwen2-Audio classes, none of which is changed or copied.

`transformers` scatters the audio features into the prompt's embeddings inside the model's forward pass, which
insists on one placeholder per feature. So the model itself builds those embeddings for the whole audio, a hook
takes them just before the language model, the tokens that go are removed there, and the language model (or
``generate``) continues from the shortened embeddings. With nothing removed it gets the very tensors that the
untouched model gives it.

Audio longer than the tower's window (30 s) is cut into windows, each an audio of its own to the processor, and
their tokens stand in one row between ``<|audio_bos|>`` and ``<|audio_eos|>``.

Positions. The paper does not say which positions the remaining tokens get. ``compact`` (default) numbers them
anew, as if the rest had never been there, so that 90 s of audio stay within the positions of 30 s.
``original`` leaves every token the position it has in the whole prompt, with gaps, and what follows (and what is
generated) continues from there. `localgp.speechprune.positions` measures the difference.

Shape legend: B samples, T positions of the prompt, N audio tokens, L query tokens, D embedding size, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from localgp.errors import AudioError, BackboneError, ConfigError
from localgp.speechprune.methods import FirstLayer, Pruner

SAMPLE_RATE = 16_000
POSITIONS = ("compact", "original")
_TAIL = 480  # samples in 30 ms: a last window under this has no token


@dataclass(frozen=True)
class Request:
    """One audio and one question about it.

    Attributes:
        audio: Samples (n,) at 16 kHz.
        prompt: The user's text, all of it.
        query: The part of it that phase 1 compares the audio with.
        name: Of the audio; the random baselines draw by it.
    """

    audio: np.ndarray
    prompt: str
    query: str
    name: str = ""


@dataclass
class Encoded:
    """A left-padded batch of prompts with all their audio tokens, as the untouched language model would get it."""

    embeds_BTD: Tensor
    mask_BT: Tensor  # 1 where there is a token
    audio_BT: Tensor  # True at audio tokens
    queries: list[Tensor]  # (L, D) each
    names: list[str]
    pad_D: Tensor
    seconds: float

    def audio_tokens(self) -> list[int]:
        return self.audio_BT.sum(1).tolist()


@dataclass
class Pruned:
    """A left-padded batch, shortened; `inputs` is what the language model takes.

    Attributes:
        kept: For every sample the indices, ascending, of the audio tokens that stayed.
        seconds: Time that choosing and gathering took.
    """

    embeds_BTD: Tensor
    mask_BT: Tensor
    positions_BT: Tensor | None
    kept: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0

    def inputs(self) -> dict[str, Tensor]:
        inputs = {"inputs_embeds": self.embeds_BTD, "attention_mask": self.mask_BT}
        return inputs if self.positions_BT is None else {**inputs, "position_ids": self.positions_BT}


class _Embedded(Exception):
    """Ends the model's forward pass once the embeddings are there."""


class SpeechPrune:
    """A Qwen2-Audio model and its processor, with audio tokens pruned before the language model.

    Args:
        model: `transformers.Qwen2AudioForConditionalGeneration`, in eval mode, anywhere.
        processor: Its `transformers.Qwen2AudioProcessor`.
        positions: ``compact`` or ``original``.
        chat: Wrap the prompt in the processor's chat template (the instruct model); otherwise audio and prompt
            follow one another (the base model).
    """

    def __init__(self, model: Any, processor: Any, positions: str = "compact", chat: bool = True) -> None:
        if positions not in POSITIONS:
            raise ConfigError(f"positions is {positions!r}; valid: {', '.join(POSITIONS)}")
        self.model, self.processor, self.positions, self.chat = model, processor, positions, chat
        self.language_model = getattr(model, "model", model).language_model
        try:
            attention = self.language_model.layers[0].self_attn
            self.layer = FirstLayer(
                attention.q_proj.weight, attention.k_proj.weight, model.config.text_config.num_attention_heads
            )
        except AttributeError as error:
            raise BackboneError(
                f"{type(self.language_model).__name__}: no q_proj and k_proj in its first layer ({error}); phase 2 "
                "needs a language model with separate query and key projections, as Qwen2-Audio has"
            ) from error

    def text(self, prompt: str, windows: int) -> str:
        """The prompt with one placeholder per window of audio."""
        tokens = self.processor
        audio = tokens.audio_bos_token + tokens.audio_token * windows + tokens.audio_eos_token
        if not self.chat:
            return audio + prompt
        content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": prompt}]
        text = tokens.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        single = tokens.audio_bos_token + tokens.audio_token + tokens.audio_eos_token
        if text.count(single) != 1:
            raise BackboneError(f"the chat template has no {single}; set chat=false for a base model")
        return text.replace(single, audio)

    def windows(self, samples: np.ndarray, whole: bool) -> list[np.ndarray]:
        """The tower's windows; only the first one unless ``whole``, as the processor cuts long audio off."""
        length = self.processor.feature_extractor.n_samples
        starts = range(0, len(samples), length) if whole else [0]
        windows = [samples[start : start + length] for start in starts]
        windows = [window for window in windows if len(window) >= _TAIL]
        if not windows:
            raise AudioError(f"audio of {len(samples)} samples is under one token (40 ms); give longer audio")
        return windows

    @torch.no_grad()
    def encode(self, requests: Sequence[Request], whole: bool = True) -> Encoded:
        """Runs audio tower and projector, and lets the model put the features into the prompts' embeddings."""
        began = self.now()
        embed, tokenizer = self.model.get_input_embeddings(), self.processor.tokenizer
        words = [tokenizer.encode(request.query, add_special_tokens=False) for request in requests]
        for request, ids in zip(requests, words, strict=True):
            if not ids:
                raise ConfigError(
                    f"{request.name or 'request'}: the query is empty; phase 1 compares with its words"
                )
        windows = [self.windows(request.audio, whole) for request in requests]
        inputs = self.processor(
            text=[
                self.text(request.prompt, len(cut)) for request, cut in zip(requests, windows, strict=True)
            ],
            audio=[window for cut in windows for window in cut],
            audio_kwargs={"sampling_rate": SAMPLE_RATE},
            text_kwargs={"padding": True, "padding_side": "left"},
            return_tensors="pt",
        ).to(self.model.device)
        embeds_BTD, mask_BT = self._embed(inputs)
        return Encoded(
            embeds_BTD=embeds_BTD,
            mask_BT=mask_BT,
            audio_BT=inputs["input_ids"] == self.model.config.audio_token_id,
            queries=[embed(torch.tensor(ids, device=self.model.device)) for ids in words],
            names=[request.name for request in requests],
            pad_D=embed(torch.tensor(tokenizer.pad_token_id, device=self.model.device)),
            seconds=self.now() - began,
        )

    def _embed(self, inputs: Any) -> tuple[Tensor, Tensor]:
        captured: dict[str, Tensor] = {}

        def capture(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            captured.update(embeds=kwargs["inputs_embeds"], mask=kwargs["attention_mask"])
            raise _Embedded

        handle = self.language_model.register_forward_pre_hook(capture, with_kwargs=True)
        try:
            self.model(**inputs)
        except _Embedded:
            pass
        finally:
            handle.remove()
        return captured["embeds"], captured["mask"]

    @torch.no_grad()
    def prune(self, encoded: Encoded, pruner: Pruner) -> Pruned:
        """Removes audio tokens and pads anew on the left; everything else stays."""
        began = self.now()
        kept, rows = [], []  # of each sample: audio tokens that stay; positions in the prompt that stay
        for index, query_LD in enumerate(encoded.queries):
            audio_N = encoded.audio_BT[index].nonzero()[:, 0]
            chosen = pruner.select(
                encoded.embeds_BTD[index, audio_N], query_LD, self.layer, encoded.names[index]
            )
            stays_T = encoded.mask_BT[index].bool().clone()
            stays_T[audio_N] = False
            stays_T[audio_N[chosen]] = True
            kept.append(chosen)
            rows.append(stays_T.nonzero()[:, 0])

        longest = max(len(row) for row in rows)
        batch, _, size = encoded.embeds_BTD.shape
        embeds_BTD = encoded.pad_D.expand(batch, longest, size).clone()
        mask_BT = encoded.mask_BT.new_zeros(batch, longest)
        positions_BT = encoded.mask_BT.new_zeros(batch, longest)
        for index, row in enumerate(rows):
            embeds_BTD[index, longest - len(row) :] = encoded.embeds_BTD[index, row]
            mask_BT[index, longest - len(row) :] = 1
            positions_BT[index, longest - len(row) :] = (encoded.mask_BT[index].cumsum(0) - 1)[row]
        # With compact positions none are given: transformers numbers the shortened prompt like any other.
        original = self.positions == "original"
        return Pruned(embeds_BTD, mask_BT, positions_BT if original else None, kept, self.now() - began)

    @torch.no_grad()
    def prefill(self, pruned: Pruned) -> Tensor:
        """Logits (B, T, V) of the shortened prompts."""
        return self.model(**pruned.inputs()).logits

    @torch.no_grad()
    def generate(self, pruned: Pruned, **options: Any) -> Tensor:
        """`transformers`' own ``generate`` on the shortened prompts: the new tokens only, (B, new)."""
        return self.model.generate(**pruned.inputs(), **options)

    def now(self) -> float:
        """Seconds, with the device's work finished."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
