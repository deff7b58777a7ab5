"""Seconds of a decoding step with gates against the dense one's, paired in one run.

How much of what gates skip becomes time depends on whether an utterance's hypotheses agree: a module that is closed for
all of them is not run and its weights and source keys are not read, one that is closed for some runs on fewer rows. So
random gates are drawn in two ways, which are the two ends, and where trained ones lie between them is counted
(`Agreement`).

Shape legend: B utterances, T frames, N rows (hypotheses running), D model size, L layers, M gated modules.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from localgp.backbones.base import Backbone
from localgp.backbones.cost import DecoderCost
from localgp.bench.harness import peak_mib, per_step
from localgp.bench.parts import product_rate
from localgp.bench.step_parts import PARTS, read_rate, step_bytes, step_flops, step_seconds
from localgp.decoder.cached import CachedDecoder
from localgp.decoder.gates import DecoderGates, GateState
from localgp.pruning import DECODER_MODULES as MODULES
from localgp.search.beam import BeamSearch
from localgp.search.options import DecodeOptions

STEP_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}  # of weights
NO_END = -1e4  # bias of eos in a search that shall not end


class StepBench:
    """Steps of a beam search over given utterances.

    Args:
        backbone: Whose decoder it is.
        dense: It, laid out.
        wanted: With the ``beam``, the ``steps`` (tokens of every output; no hypothesis may end earlier: see `endless`)
            and rounds (``repeats``).
        memory_BTD: Encoder output.
        primers: What each utterance's output begins with.
    """

    def __init__(
        self,
        backbone: Backbone,
        dense: CachedDecoder,
        wanted: DictConfig,
        memory_BTD: Tensor,
        primers: list[list[int]],
    ) -> None:
        self._backbone, self._dense, self._primers = backbone, dense, primers
        self._memory_BTD, self._steps, self._repeats = memory_BTD, wanted.steps, wanted.repeats
        self._beam = wanted.beam

    def against_dense(self, gates: DecoderGates, gate_flops: float = 0.0) -> dict[str, Any]:
        """What a benchmark's row says of these gates.

        A search of ``steps`` tokens less one of a single token, so that what is done once per utterance is not counted.

        Args:
            gate_flops: What deciding costs a hypothesis.

        Returns:
            ``skipped``: share of module runs of all hypotheses. ``step_time_ratio_vs_dense``: median over the rounds.
            ``seconds_per_step``, ``dense_seconds_per_step``: medians. ``flop_ratio``: of the steps. ``agree``: see
            `Agreement.share`; ``agreement`` by module. ``peak_mib``: of the gated search.
        """
        agreement, device = Agreement(gates), self._memory_BTD.device
        self.search(agreement)
        runs = {"dense": partial(self.of, None), "gated": partial(self.of, gates)}
        times = per_step(runs, self._steps, self._repeats, device)
        cost = DecoderCost(self._backbone, self._memory_BTD.shape[1])
        kept_LM = agreement.kept_LM
        everything_LM = np.full_like(kept_LM, self._steps)
        flops = cost.passes(self._steps, self._steps * kept_LM) + gate_flops
        return {
            "skipped": 1 - float(kept_LM.mean()),
            "flop_ratio": flops / cost.passes(self._steps, everything_LM),
            "step_time_ratio_vs_dense": times.ratio("gated", "dense"),
            "seconds_per_step": times.median("gated"),
            "dense_seconds_per_step": times.median("dense"),
            "agree": agreement.share,
            "agreement": agreement.by_module,
            "peak_mib": peak_mib(partial(self.search, gates), device),
        }

    def of(self, gates: DecoderGates | None, steps: int) -> Callable[[], None]:
        """A search of so many steps, ready to run."""
        return partial(self.search, gates, steps)

    def profile(self, gates: DecoderGates) -> list[dict[str, Any]]:
        """Seconds of a step by part, dense and gated, for a benchmark's rows; on a CPU.

        ``of_product_rate``: what the part's FLOPs take at the rate of a plain product of so many rows, over what it
        takes. ``of_memory_rate``: the same of the bytes that it reads. A part with one of them near 1 is at its limit.
        """
        utterances, frames = self._memory_BTD.shape[:2]
        rows, dtype = utterances * self._beam, self._dense.weights_dtype
        run = self.search
        run(gates)
        rounds = [(step_seconds(run, None), step_seconds(run, gates)) for _ in range(self._repeats)]
        dense, gated = (
            {part: float(np.median([one[which][part] for one in rounds])) for part in PARTS}
            for which in (0, 1)
        )
        cost = DecoderCost(self._backbone, frames)
        flops, read = step_flops(cost, rows, self._steps), step_bytes(cost, utterances, dtype)
        per_second = product_rate(rows, cost.size, dtype, self._repeats)
        bytes_per_second = read_rate(self._repeats)
        found = []
        for part in PARTS:
            row: dict[str, Any] = {
                "part": part,
                "seconds": dense[part],
                "gated_seconds": gated[part],
                "time_share": dense[part] / sum(dense.values()),
                "flop_share": flops.get(part, 0.0) / sum(flops.values()),
            }
            if part in flops:
                row["of_product_rate"] = flops[part] / per_second / dense[part]
                row["of_memory_rate"] = read[part] / bytes_per_second / dense[part]
            found.append(row)
        return found

    def with_fewer_frames(self, left_out: float) -> dict[str, Any]:
        """What source attention is of a step where the decoder is shown fewer frames, beside what it is of all; on a
        CPU."""
        fewer_BTD = self._memory_BTD[:, : round((1 - left_out) * self._memory_BTD.shape[1])].contiguous()
        self.search(memory_BTD=fewer_BTD)  # the first run makes oneDNN's kernels
        rounds = []
        for _ in range(self._repeats):
            pair = []
            for given_BTD in (self._memory_BTD, fewer_BTD):
                seconds = step_seconds(partial(self.search, memory_BTD=given_BTD), None)
                pair.append((seconds["source_attention"] + seconds["source_reading"], sum(seconds.values())))
            rounds.append(pair)
        (source, step), (fewer, fewer_step) = np.median(np.array(rounds), axis=0).tolist()
        return {
            "left_out": left_out,
            "seconds_per_step": fewer_step,
            "dense_seconds_per_step": step,
            "step_time_ratio_vs_dense": fewer_step / step,
            "source_time_ratio": fewer / source,
            "source_share_ratio": fewer / fewer_step / (source / step),
        }

    def search(
        self, gates: DecoderGates | None = None, steps: int | None = None, memory_BTD: Tensor | None = None
    ) -> None:
        """Runs one, of all steps and over all frames if nothing else is said."""
        given_BTD = self._memory_BTD if memory_BTD is None else memory_BTD
        options = DecodeOptions(beam=self._beam, maxlenratio=-(steps or self._steps))
        lengths_B = torch.full((len(given_BTD),), given_BTD.shape[1], device=given_BTD.device)
        BeamSearch(self._backbone, options, self._dense)(given_BTD, lengths_B, self._primers, gates)


class Agreement:
    """Passes gates on, and counts how often an utterance's hypotheses agree on a module.

    Args:
        gates: Whose decisions are counted.
    """

    def __init__(self, gates: DecoderGates) -> None:
        self._gates = gates
        # Of each layer and module: rows open, rows; groups all open, all closed, groups
        self._counts: dict[tuple[int, str], np.ndarray] = defaultdict(lambda: np.zeros(5))

    def __call__(self, layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
        masks = self._gates(layer, x_ND, state)
        _, group_N, size_G = torch.unique(state.utterance_N, return_inverse=True, return_counts=True)
        several_G = size_G > 1
        for name in MODULES:
            mask_N = masks.get(name, torch.ones_like(state.utterance_N, dtype=torch.bool))
            open_G = torch.zeros_like(size_G).index_add_(0, group_N, mask_N.long())
            same = ((open_G == size_G) & several_G, (open_G == 0) & several_G, several_G)
            counts = (mask_N, torch.ones_like(mask_N), *same)
            self._counts[layer, name] += [int(count.sum()) for count in counts]
        return masks

    @property
    def kept_LM(self) -> np.ndarray:
        """Share of rows that each module of each layer ran on."""
        layers = 1 + max(layer for layer, _ in self._counts)
        counts_LMC = np.array([[self._counts[layer, name] for name in MODULES] for layer in range(layers)])
        kept_LM: np.ndarray = counts_LMC[..., 0] / counts_LMC[..., 1]
        return kept_LM

    @property
    def share(self) -> float:
        """Of the steps of an utterance with several hypotheses, where a module is open for all or closed for all."""
        _, _, opened, closed, groups = np.sum(list(self._counts.values()), axis=0)
        return float((opened + closed) / max(1, groups))

    @property
    def by_module(self) -> dict[str, dict[str, float]]:
        """Module to the shares ``all_open`` and ``all_closed``."""
        found = {}
        for module in MODULES:
            of_module = [counts for (_, name), counts in self._counts.items() if name == module]
            _, _, opened, closed, groups = np.sum(of_module, axis=0).tolist()
            found[module] = {"all_open": opened / max(1, groups), "all_closed": closed / max(1, groups)}
        return found


def random_gates(share: float, seed: int, pattern: str = "hypothesis") -> DecoderGates:
    """Gates that close with probability ``share``, independently for every module, layer and token.

    Args:
        pattern: ``hypothesis``: every hypothesis has a draw of its own. ``utterance``: those of an utterance share it.
    """
    generators: dict[torch.device, torch.Generator] = {}
    utterances = 0

    def gates(layer: int, x_ND: Tensor, state: GateState) -> dict[str, Tensor]:
        nonlocal utterances
        device = x_ND.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed(seed)
        count = x_ND.shape[0]
        if pattern == "utterance":
            if layer == 0 and state.history_NPLM is None:  # of a search's first pass; later, a GPU would wait
                utterances = int(state.utterance_N.max()) + 1
            count = utterances
        draw = torch.rand(len(MODULES), count, generator=generators[device], device=device)
        if pattern == "utterance":
            draw = draw.index_select(1, state.utterance_N)
        return dict(zip(MODULES, draw >= share, strict=True))

    return gates


@contextlib.contextmanager
def endless(backbone: Backbone, peak: float = 1.0) -> Iterator[None]:
    """No hypothesis ends before its bound; undone afterwards.

    Args:
        peak: Output weights are multiplied by it; a power of two, which is undone exactly.
    """
    output, model = backbone.output_layer, backbone.net
    was_training = model.training
    kept = output.bias
    model.eval()
    with torch.no_grad():
        output.weight.mul_(peak)
        bias = output.weight.new_zeros(output.out_features) if kept is None else kept.detach().clone()
        bias[backbone.tokenizer.eos] = NO_END
        output.bias = torch.nn.Parameter(bias)
    try:
        yield
    finally:
        with torch.no_grad():
            output.weight.div_(peak)
        output.bias = kept
        model.train(was_training)
