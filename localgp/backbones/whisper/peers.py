"""What else computes Whisper: `transformers` itself, and CTranslate2, the engine of faster-whisper. For benchmarks.

Shape legend: B utterances, S feature frames, F mel bins, T encoder frames, D model size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from localgp.backbones.whisper.tokens import WhisperTokens
from localgp.errors import ConfigError


class Transformers:
    """`transformers`' own forward and ``generate``, with the attention that it takes if nothing is said.

    Args:
        net: ``WhisperForConditionalGeneration``; copied.
        tokens: Its vocabulary.
    """

    def __init__(self, net: Any, tokens: WhisperTokens) -> None:
        self._net, self._end = copy.deepcopy(net).eval(), tokens.eos
        self._net.set_attn_implementation("sdpa")

    @torch.no_grad()
    def encode(self, feats_BSF: Tensor) -> Tensor:
        output: Tensor = self._net.model.encoder(feats_BSF.transpose(1, 2)).last_hidden_state
        return output

    def search(
        self, memory_BTD: Tensor, primers: Sequence[list[int]], beam: int
    ) -> Callable[[], list[list[int]]]:
        from transformers import GenerationMixin, LogitsProcessorList
        from transformers.modeling_outputs import BaseModelOutput

        config = copy.deepcopy(self._net.generation_config)
        config.return_timestamps, config.no_speech_threshold = False, None
        begin = len(primers[0])
        rules = self._net._retrieve_logit_processors(
            generation_config=config,
            logits_processor=None,
            begin_index=begin,
            num_beams=beam,
            device=memory_BTD.device,
        )

        @torch.no_grad()
        def run() -> list[list[int]]:
            # Whisper's own generate is this with features made first and segments put together afterwards.
            generate: Any = GenerationMixin.generate
            written = generate(
                self._net,
                encoder_outputs=BaseModelOutput(memory_BTD),
                decoder_input_ids=torch.tensor(list(primers), device=memory_BTD.device),
                logits_processor=LogitsProcessorList(rules or []),
                do_sample=False,
                num_beams=beam,
                max_length=self._net.config.max_target_positions,
            )
            return [_ended(row[begin:], self._end) for row in written.tolist()]

        return run


class CTranslate2:
    """The same weights in CTranslate2, on as many threads as PyTorch has.

    Args:
        net, tokens: As of `Transformers`.
        arithmetic: ``float32`` or ``int8``.

    Raises:
        ConfigError: CTranslate2 is not here.
    """

    def __init__(self, net: Any, tokens: WhisperTokens, arithmetic: str = "float32") -> None:
        try:
            import ctranslate2
            from ctranslate2.converters.transformers import WhisperLoader
        except ImportError as error:
            raise ConfigError("CTranslate2 is not here; pip install ctranslate2") from error
        loader, self._end = WhisperLoader(), tokens.eos
        with torch.no_grad(), TemporaryDirectory() as folder:
            # A copy, as quantising scales the weights that it is given in place
            spec = loader.get_model_spec(copy.deepcopy(net))
            spec.register_vocabulary(list(tokens.token_list))
            given = net.generation_config
            spec.config.suppress_ids = getattr(given, "suppress_tokens", None) or []
            spec.config.suppress_ids_begin = getattr(given, "begin_suppress_tokens", None) or []
            spec.config.lang_ids, spec.config.alignment_heads = list(tokens.language_ids), []
            spec.validate()
            spec.optimize(quantization=arithmetic)
            spec.save(folder)
            self._model = ctranslate2.models.Whisper(
                folder,
                device="cuda" if net.proj_out.weight.is_cuda else "cpu",
                compute_type=arithmetic,
                intra_threads=torch.get_num_threads(),
            )
        self._longest = net.config.max_target_positions
        self._given = ctranslate2.StorageView.from_array

    def encode(self, feats_BSF: Tensor) -> Tensor:

        feats = self._given(feats_BSF.transpose(1, 2).contiguous().cpu().numpy())
        return torch.from_numpy(np.array(self._model.encode(feats, to_cpu=True)))

    def search(
        self, memory_BTD: Tensor, primers: Sequence[list[int]], beam: int, longest: int | None = None
    ) -> Callable[[], list[list[int]]]:
        memory = self._given(memory_BTD.contiguous().cpu().numpy())

        def run() -> list[list[int]]:
            written = self._model.generate(
                memory, list(primers), beam_size=beam, length_penalty=1.0, max_length=longest or self._longest
            )
            return [_ended(one.sequences_ids[0], self._end) for one in written]

        return run


class EqualSteps:
    """Beam search of a Whisper with random weights whose decoder is as large as another model's, in CTranslate2.

    Args:
        size, layers, heads, units, vocabulary: Of that decoder.
        frames: Of the encoder's output.
        arithmetic: See `CTranslate2`.

    Raises:
        ConfigError: CTranslate2 is not here.
    """

    def __init__(
        self, *, size: int, layers: int, heads: int, units: int, vocabulary: int, frames: int, arithmetic: str
    ) -> None:
        from transformers import WhisperConfig, WhisperForConditionalGeneration

        tokens = WhisperTokens.placeholder(vocabulary)
        ends: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokens.eos)
        config = WhisperConfig(
            vocab_size=vocabulary,
            d_model=size,
            encoder_layers=1,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=size,
            decoder_ffn_dim=units,
            max_source_positions=frames,
            decoder_start_token_id=tokens.start[0],
            **ends,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = WhisperForConditionalGeneration(config).eval()
        net.generation_config.suppress_tokens = [tokens.eos]  # no hypothesis ends
        net.generation_config.begin_suppress_tokens = None
        self._peer = CTranslate2(net, tokens, arithmetic)
        self._primer = [*tokens.start, *tokens.prompt("de", "de")]

    def search(self, memory_BTD: Tensor, beam: int, steps: int) -> Callable[[], list[list[int]]]:
        """A search that is ready to run, of so many tokens."""
        primers = [self._primer] * len(memory_BTD)
        # An output has at most half of the positions, and none of those of the primer but its last one's.
        return self._peer.search(memory_BTD, primers, beam, max(2 * steps, len(self._primer) - 1 + steps))


def _ended(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids


PEERS: dict[str, Callable[[Any, WhisperTokens], Any]] = {
    "transformers": Transformers,
    "ctranslate2": CTranslate2,
}
