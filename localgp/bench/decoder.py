"""Seconds of the decoder: ours against ESPnet's, gated against dense, paired in one run.

Every row compares runs that alternate, and gives the median of their ratios, so that a machine that is slow for
a while is slow for both. Random encoder output stands in for speech: neither decoder looks at what it says. (What
trained gates skip does: see `DecoderBench.learnt`.)

Shape legend: B utterances, N samples, T frames, D model size, Q sequences.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from localgp.bench.harness import timed
from localgp.bench.rows import DECODER, Bench
from localgp.bench.steps import STEP_DTYPES, StepBench, endless, random_gates
from localgp.corpora.rows import Task
from localgp.decoder.cached import CachedDecoder
from localgp.encoder.run import EncoderOutput
from localgp.gates.cost import gates_cost
from localgp.model import GatedS2T
from localgp.precision import why_no_int8
from localgp.search.beam import BeamSearch, Hypothesis
from localgp.search.options import DecodeOptions
from localgp.search.tasks import primers_of

PEAK = 8.0  # random output layers are flat; this far apart, the best are no matter of rounding
FRAMES = 749  # of the encoder for 30 s
LEFT_OUT = 0.7  # share of them that the decoder is not shown, of rows ``kept``


class DecoderBench(Bench):
    """Benchmarks of one decoder and CTC head: no hypothesis ends before the tokens that are wanted. Arguments as of
    `Bench`."""

    schema = DECODER
    frames = FRAMES  # of the encoder, of an utterance

    @cached_property
    def primer(self) -> list[int]:
        """What every output begins with."""
        tokens = self.backbone.tokenizer
        return [*tokens.start, *tokens.prompt(tokens.languages[0], tokens.languages[0])]

    def measure(self) -> list[dict[str, Any]]:
        """All that is wanted, as rows: searches beside ESPnet's, which runs in the same type (not at all beside 8
        bits); on a CPU a step by part, and with fewer frames; steps with random gates."""
        wanted, on_cpu = self.wanted, self.device.type == "cpu"
        inputs = {count: self.memory(count) for count in wanted.utterances}
        with endless(self.backbone, PEAK):
            for dtype in self.dtypes():
                dense = CachedDecoder(self.backbone, dtype=STEP_DTYPES[dtype])
                # Others are timed on their own (`localgp.bench.peers`)
                for ctc_weight in () if self.backbone.peers or dtype == "int8" else wanted.ctc_weights:
                    self.espnet(dtype, dense, ctc_weight, inputs)
                benches = {n: StepBench(self.backbone, dense, wanted, *given) for n, given in inputs.items()}
                if wanted.skipped and wanted.patterns and on_cpu:
                    share, pattern = wanted.skipped[0], wanted.patterns[0]
                    for count, bench in benches.items():
                        for part in bench.profile(random_gates(share, 0, pattern)):
                            self._add("profile", dtype, count, skipped=share, decided_per=pattern, **part)
                for count, bench in benches.items() if on_cpu else ():
                    self._add("kept", dtype, count, **bench.with_fewer_frames(LEFT_OUT))
                for share in wanted.skipped:
                    for pattern in wanted.patterns:
                        for count, bench in benches.items():
                            found = bench.against_dense(random_gates(share, 0, pattern)) | {"skipped": share}
                            self._add("pruned", dtype, count, decided_per=pattern, **found)
        return self.rows

    def dtypes(self) -> list[str]:
        """Those that are wanted and that there are here."""
        why = why_no_int8(self.device) if "int8" in self.wanted.dtypes else None
        if why:
            self.progress(f"not measured: int8 {why}")
        return [dtype for dtype in self.wanted.dtypes if dtype != "int8" or not why]

    def memory(self, count: int) -> tuple[Tensor, list[list[int]]]:
        """Encoder output of so many utterances, noise, and what the output of each begins with."""
        return self.noise(count, self.frames, self.backbone.shape.size), [self.primer] * count

    def espnet(
        self,
        dtype: str,
        dense: CachedDecoder,
        ctc_weight: float,
        inputs: dict[int, tuple[Tensor, list[list[int]]]],
    ) -> None:
        """Searches. ESPnet decodes one utterance at a time, so it is timed on one, and a batch of n is compared with n
        times that."""
        options = DecodeOptions(beam=self.wanted.beam, ctc_weight=ctc_weight, maxlenratio=-self.wanted.steps)
        search = BeamSearch(self.backbone, options, dense)
        reference = self.backbone.reference_search(options, STEP_DTYPES[dtype])
        for count, (memory_BTD, primers) in inputs.items():
            lengths_B = torch.full((count,), self.frames, device=self.device)
            ours: Callable[[], list[list[Hypothesis]]] = partial(search, memory_BTD, lengths_B, primers)
            ours()  # the first run makes oneDNN's kernels
            seconds, identical = [], True
            for repeat in range(self.wanted.espnet_repeats):
                u = repeat % count
                theirs_s, theirs = timed(partial(reference, memory_BTD[u], self.primer), self.device)
                ours_s, found = timed(ours, self.device)
                identical &= found[u][0].tokens == theirs
                seconds.append((ours_s, theirs_s))
            self._add(
                "dense",
                dtype,
                count,
                ctc_weight=ctc_weight,
                speedup_vs_espnet=statistics.median(count * theirs / ours for ours, theirs in seconds),
                identical_hypotheses=identical,
                seconds=statistics.median(ours for ours, _ in seconds),
                espnet_seconds_per_utterance=statistics.median(theirs for _, theirs in seconds),
                flop_ratio=1.0,
                peak_mib=self.peak(ours),
            )

    @torch.no_grad()
    def learnt(self, model: GatedS2T, encoded: EncoderOutput, tasks: Sequence[Task]) -> None:
        """Steps of trained gates on real speech against the same decoder without gates, in fp32.

        Both write as many tokens, so that they differ in nothing but what runs.

        Args:
            model: With trained decoder gates, in eval mode.
            encoded: Of utterances.
            tasks: One for each of them, in their order.
        """
        primers = primers_of(self.backbone.tokenizer, tasks)
        begin = len(self.backbone.tokenizer.start)
        prompt_Q2 = torch.tensor([primer[begin:][:2] for primer in primers], device=self.device)
        owner_Q = torch.arange(len(tasks), device=self.device)
        gates = model.step_gates(encoded, owner_Q, [task.name for task in tasks], prompt_Q2)
        assert gates is not None
        wanted, self.frames = self.wanted, encoded.x.shape[1]
        cost = gates_cost(model.decoder_policy, wanted.steps, decoder=True)
        with endless(self.backbone):
            dense = CachedDecoder(self.backbone)
            for count in wanted.utterances:
                bench = StepBench(self.backbone, dense, wanted, encoded.x[:count], primers[:count])
                found = bench.against_dense(gates, cost)
                self._add("learnt", "fp32", count, decided_per="hypothesis", **found)

    def _add(self, measure: str, dtype: str, utterances: int, **figures: Any) -> None:
        size = {"utterances": utterances, "frames": self.frames, "beam": self.wanted.beam}
        self.add(measure, dtype, **size, steps=self.wanted.steps, **figures)
