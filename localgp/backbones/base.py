"""The seam: what everything else may ask of a speech foundation model.

A family (OWSM, for instance) is a folder that has a `Backbone` of its own; gates, packed path, cached decoder, search,
training and counting are written against this file alone. A family writes each layer once (`Backbone.encoder_layer`,
`Backbone.decoder_layer`) and says with `Runner` which part of it may be skipped; a second, short version is for packed
sequences (`Backbone.packed`). What the parts are made of stands in one table, `Backbone.branches`: it is what can be
gated and what it costs, and what the cached decoder is built from.

Shape legend: B utterances, N samples, S feature frames, F mel bins, T encoder frames, D model size, Q sequences (an
utterance has one per task), L tokens, V vocabulary, R rows (tokens being decoded), P tokens of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from localgp.backbones.longform import LongForm
from localgp.kernels.plan import LayerPlan
from localgp.kernels.ragged import Ragged
from localgp.timeline import Timeline

Side = Literal["encoder", "decoder"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model.

    Attributes:
        size: D, of encoder and decoder.
        encoder_layers, decoder_layers: Numbers of layers.
        vocabulary: V.
        mels: F.
        longest: Tokens that the decoder has positions for, prompt included; None for any number.
    """

    size: int
    encoder_layers: int
    decoder_layers: int
    vocabulary: int
    mels: int
    longest: int | None = None


@dataclass(frozen=True)
class Branch:
    """A part of a layer, as it is in the third-party model: ``x + scale * part(norm(x))`` or what a family makes of it.

    Attributes:
        kind: ``attention`` and ``source`` (attention to the encoder's output) and ``ffn`` have the linear layers that
            their names let one expect, in the order query, key, value, out, or in, out; they can be packed and cached
            by `localgp.backbones.blocks`. ``convolution`` sees its neighbours and so runs on all frames of an utterance
            or on none. ``always`` cannot be gated; ``prompt`` neither, and is attention to what an encoder is told.
        linears: What multiplies every row it runs on: linear layers and depthwise convolutions.
        norm: What comes first.
        module: The part without its norm, where it is one module.
        scale: Of its output.
        heads: Of attention.
        head_norms: Of queries and keys, where there are such.
        activation: Between an FFN's linear layers.
        inner_norms: Further norms of each row.
    """

    kind: Literal["attention", "source", "ffn", "convolution", "prompt", "always"]
    linears: tuple[nn.Module, ...]
    norm: nn.Module | None = None
    module: nn.Module | None = None
    scale: float = 1.0
    heads: int = 0
    head_norms: tuple[nn.Module, nn.Module] | None = None
    activation: nn.Module | None = None
    inner_norms: tuple[nn.Module, ...] = ()

    @property
    def gated(self) -> bool:
        """Whether it can be."""
        return self.kind not in ("prompt", "always")


Branches = dict[str, Branch]


Within = Callable[[Tensor], Tensor]


class Runner(Protocol):
    """How the parts of one layer are run: with its gates, masked or gathered (`localgp.encoder.run`,
    `localgp.decoder.train`). A family calls each part through it, by its name in `Backbone.branches`."""

    def frames(self, name: str, part: Callable[[Tensor], Tensor], x: Tensor, scale: float = 1.0) -> Tensor:
        """``scale * part(x)``, of a part that sees each frame by itself."""

    def attention(
        self, name: str, part: Callable[[Tensor, Tensor | None], Tensor], x: Tensor, mask: Tensor
    ) -> Tensor:
        """``part(x, mask)``, of self-attention; without a mask where all may be seen."""

    def utterance(self, name: str, part: Callable[[Tensor, Within], Tensor], x: Tensor) -> Tensor:
        """``part(x, within)``, of a part that sees its neighbours: a convolution in it is given ``within(its input)``,
        and so sees nothing but zeros behind an utterance's end, as if that were alone."""

    def within(self, x: Tensor) -> Tensor:
        """The same for a convolution that cannot be gated: ``x``, zeros behind each utterance's end."""


Forbid = Callable[[Tensor, Tensor, Tensor, int], None]
"""``forbid(scores_RV, tokens_RP, length_R, written)``: sets the scores of what may not follow to minus infinity, in
place. Of each row's tokens the search wrote the last ``written``."""


class Tokens(Protocol):
    """A family's vocabulary: text to ids and back, prompts, and the rules of the search.

    Attributes:
        token_list: Tokens by id.
        start: What every output begins with, before the prompt.
        eos: Ends an output.
        blank: CTC's; -1 where the model has none.
        languages: What can be spoken, as the model names them.
        language_ids: The tokens of these languages, in their order.
        first_time, last_time: Ids of the first and the last time symbol, which are contiguous; an empty range where
            there are none.
        tasks: What it can be asked for by name besides the text and translations of it; `prompt` takes one, as its
            symbol ``<name>``, for a target.
        translates_into: Languages that the published models translate into; None for all of theirs.
        na: Stands for previous text that there is none of.
        long_form: How it walks through long recordings.
    """

    token_list: list[str]
    start: list[int]
    eos: int
    blank: int
    languages: list[str]
    language_ids: list[int]
    first_time: int
    last_time: int
    tasks: Sequence[str]
    translates_into: Sequence[str] | None
    na: int
    long_form: LongForm

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str: ...

    def prompt(self, language: str, target: str, *, timestamps: bool = False) -> list[int]:
        """What follows `start`: first the symbols of language and task.

        Raises:
            ConfigError: A language that the model does not have.
        """

    def previous(self, text: Sequence[int], longest: int) -> list[int]:
        """What stands before `start` where there is text before.

        Args:
            text: Its ids.
            longest: Positions of the decoder, of which it takes half at most.
        """

    def code(self, language: str) -> str:
        """A language as the model names it, from that or its two-letter code.

        Raises:
            ConfigError: The model does not have it.
        """

    def rules(self, primers: list[list[int]]) -> Forbid:
        """What may not follow in outputs that begin so."""


class Front(NamedTuple):
    """What a stem gives the first layer.

    Attributes:
        x: (B, T, D), the first layer's input.
        front: (B, T, D), the same before positions and scale: the paper's context "front".
        mask: (B, 1, T), True for frames of the utterance.
    """

    x: Tensor
    front: Tensor
    mask: Tensor


class DecoderInput(NamedTuple):
    """Sequences as a family's decoder is taught them.

    Attributes:
        tokens: (Q, L), padded.
        lengths: (Q,).
        targets: (Q, L), the token after each, or what the family's loss passes by.
    """

    tokens: Tensor
    lengths: Tensor
    targets: Tensor


class Loss(NamedTuple):
    """The recognition loss and what it is made of.

    Attributes:
        total: What the model is trained for.
        attention, attention_weight: Of the decoder's outputs, and its part in ``total``.
        accuracy: Share of tokens that the decoder has right.
        ctc: None where there is none.
    """

    total: Tensor
    attention: Tensor
    attention_weight: float
    accuracy: Tensor
    ctc: Tensor | None = None


class Peer(Protocol):
    """What else computes the same weights, to be timed beside ours, in fp32."""

    def encode(self, feats_BSF: Tensor) -> Tensor:
        """Features of full windows to (B, T, D)."""

    def search(
        self, memory_BTD: Tensor, primers: Sequence[list[int]], beam: int
    ) -> Callable[[], list[list[int]]]:
        """A search that is ready to run: the best hypothesis of each utterance, without its primer and its end."""


PackedLayer = Callable[[Tensor, Ragged, LayerPlan], Tensor]
"""``layer(x_ND, layout, plan)``: may change ``x_ND`` on the way."""


class Packed(NamedTuple):
    """An encoder laid out for inference (`localgp.encoder.packed`), from the weights as they are now.

    Attributes:
        stem: Features and their lengths to "front", (N, D), each utterance as if it were alone, and its layout.
        positions: "front" of utterances of one length (B, T, D) to the first layer's input.
        layers: One after the other.
        end: What comes after them.
        told: `Backbone.told`, of a family whose encoders are; the others' parts are for whatever they are asked.
    """

    stem: Callable[[Tensor, list[int]], tuple[Tensor, Ragged]]
    positions: Callable[[Tensor], Tensor]
    layers: Sequence[PackedLayer]
    end: Callable[[Tensor], Tensor]
    told: Callable[[Sequence[list[int]] | None, int], Packed] | None = None


class Backbone(ABC):
    """A speech foundation model and what goes with it.

    The third-party model is kept whole as `net`, so its checkpoints load and save as they are; this is a view of it and
    has no parameters of its own. (So it is no module either: a gated model holds ``net`` under the name `key`, and its
    stored tensors are ``net``'s with that name in front.)

    Attributes:
        key: Of the family, in stored models.
        library: That the model is of, as the Hugging Face hub tags it.
        peers: Names of what else computes it (`peer`).
        saves_hub_folder: Whether what `save` writes is what that library loads from the hub, so that a packed model is
            that, with the gates beside it.
        net: The model.
        shape: Its sizes.
        timeline: Where its encoder frames lie on the signal.
        tokenizer: Its vocabulary.
        sample_rate: Hz.
        padded_seconds: The window: every input is padded to this unless a shorter one is asked for.
        name: For run directories and tables.
        source: Where the weights came from, for people.
        is_told: Whether its encoder is told what is to be written, and so runs once for every task of an utterance.
        encoder_norm, decoder_norm, output_layer: What comes after the layers.
        ctc: Its output layer, or None.
    """

    key: ClassVar[str]
    library: ClassVar[str] = ""
    peers: ClassVar[tuple[str, ...]] = ()
    saves_hub_folder: ClassVar[bool] = False
    is_told: ClassVar[bool] = False
    net: nn.Module
    shape: Shape
    timeline: Timeline
    tokenizer: Tokens
    sample_rate: int
    padded_seconds: float
    name: str
    source: str

    @property
    @abstractmethod
    def stem(self) -> tuple[nn.Module, ...]:
        """The modules that make encoder frames of feature frames, where they are timed beside ours."""

    @property
    @abstractmethod
    def encoder_norm(self) -> nn.Module: ...

    @property
    @abstractmethod
    def decoder_norm(self) -> nn.Module: ...

    @property
    @abstractmethod
    def output_layer(self) -> nn.Linear: ...

    @property
    def ctc(self) -> nn.Linear | None:
        return None

    @property
    def samples(self) -> int:
        """N of a padded input."""
        return round(self.padded_seconds * self.sample_rate)

    @property
    def device(self) -> torch.device:
        return self.output_layer.weight.device

    @abstractmethod
    def features(self, speech_BN: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised log-mel features (B, S, F) in fp32, augmented in training where the model has it; lengths."""

    def told(self, primers: Sequence[list[int]] | None, count: int) -> Backbone:
        """The backbone for a batch of which it knows what is to be written; itself, where that is its decoder's alone.

        Args:
            primers: `Tokens.previous`, `Tokens.start` and `Tokens.prompt` of each utterance, one behind the other;
                None: nothing is known but that it is a transcript.
            count: B.
        """
        return self

    @abstractmethod
    def front(self, feats_BSF: Tensor, lengths_B: Tensor) -> Front:
        """The stem, with positions. Lengths may differ: no frame of an utterance sees what is behind its end, and
        ``mask`` has as many as it would have alone (`Timeline.frames_of`)."""

    @abstractmethod
    def encoder_layer(self, index: int, x_BTD: Tensor, mask_B1T: Tensor, run: Runner) -> Tensor: ...

    @abstractmethod
    def embed(self, tokens_QL: Tensor) -> Tensor:
        """Tokens from position 0 on, (Q, L, D)."""

    @abstractmethod
    def embed_at(self, tokens_R: Tensor, position_R: Tensor, longest: int) -> Tensor:
        """Tokens at positions below ``longest``, (R, D) in fp32; for inference."""

    @abstractmethod
    def task_embedding(self, prompt_Q2: Tensor) -> Tensor:
        """Of a prompt's language and task symbols, side by side, (Q, 2 D): the context "task"."""

    @abstractmethod
    def decoder_layer(
        self, index: int, x_QLD: Tensor, mask_QLL: Tensor, memory_QTD: Tensor, source_Q1T: Tensor, run: Runner
    ) -> Tensor: ...

    @abstractmethod
    def branches(self, side: Side, index: int) -> Branches:
        """The parts of a layer by name, in the order in which they run."""

    @abstractmethod
    def stem_flops(self, feature_frames: int) -> int:
        """Multiply-adds of `front`, as fvcore counts them."""

    @abstractmethod
    def packed(self, dtype: torch.dtype) -> Packed:
        """The encoder laid out for inference; made anew by every call, and to be dropped where weights change."""

    @abstractmethod
    def decoder_input(self, batch: dict[str, Any]) -> DecoderInput:
        """What the decoder is trained with, from ``text`` and ``text_prev``, (Q, L) padded with -1."""

    @abstractmethod
    def losses(
        self, x_BTD: Tensor, lengths_B: Tensor, logits_QLV: Tensor, targets_QL: Tensor, batch: dict[str, Any]
    ) -> Loss:
        """The family's own loss.

        Args:
            x_BTD: The encoder's output.
            lengths_B: Its frames.
            logits_QLV: The decoder's.
            targets_QL: Of `decoder_input`.
            batch: With ``text_ctc`` (B, L) and ``text_ctc_lengths`` (B,), transcripts.
        """

    @property
    def loss_states(self) -> tuple[int, ...]:
        """Encoder layers whose states `encoder_losses` takes, besides the output."""
        return ()

    def encoder_losses(
        self, x_BTD: Tensor, lengths_B: Tensor, states: Mapping[int, Tensor], batch: dict[str, Any]
    ) -> Loss:
        """The loss of a family without a decoder; arguments as of `losses`.

        Args:
            states: Of `loss_states`.
        """
        raise NotImplementedError(f"{self.name} has a decoder")

    def reference_encoder(self, feats_BSF: Tensor, lengths_B: Tensor) -> Tensor:
        """The third-party library's own encoder (B, T, D), to be compared with."""
        raise NotImplementedError(f"there is no other implementation of {self.name} to compare with")

    def reference_search(self, options: Any, dtype: torch.dtype) -> Callable[[Tensor, list[int]], list[int]]:
        """The third-party library's own beam search, to be compared with: encoder output (T, D) of one utterance and
        primer to the best hypothesis's tokens.

        Args:
            options: `localgp.search.options.DecodeOptions`.
        """
        raise NotImplementedError(f"there is no other implementation of {self.name} to compare with")

    def peer(self, name: str) -> Peer:
        """One of `peers`, with the weights as they are now.

        Raises:
            ConfigError: It is not installed.
        """
        raise NotImplementedError(f"{name} has no {self.name}")

    def use_fast_kernels(self) -> None:  # noqa: B027
        """Lets ``net`` compute the same numbers with faster kernels in training, where it has them."""

    @abstractmethod
    def save(self, folder: Path, *, weights: bool = True) -> None:
        """Writes what `localgp.backbones.open_backbone` reads; without weights, what ``backbone.weights=random``
        needs."""

    def frame_parts(self) -> list[str]:
        """Parts of an encoder's layer that can be gated frame by frame."""
        parts = self.branches("encoder", 0)
        return [name for name, part in parts.items() if part.gated and part.kind != "convolution"]

    def part_names(self, side: Side) -> list[str]:
        """Parts of a layer that can be gated."""
        count = self.shape.encoder_layers if side == "encoder" else self.shape.decoder_layers
        return [name for name, part in self.branches(side, 0).items() if part.gated] if count else []
