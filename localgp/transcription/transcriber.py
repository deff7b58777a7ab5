"""A loaded model and how it transcribes: what `localgp.load` returns.

Shape legend: B windows decoded together, N samples, T frames, D model size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from localgp.contexts.extract import place as place_context
from localgp.contexts.extract import stack_contexts
from localgp.corpora.audio import decode
from localgp.corpora.languages import name_of
from localgp.corpora.rows import Task
from localgp.decoder.train import decode_tokens
from localgp.encoder.run import EncoderOutput
from localgp.errors import AudioError, ConfigError
from localgp.model import GatedS2T, PackedModel
from localgp.search.options import DecodeOptions
from localgp.search.tasks import TaskSearches, primers_of
from localgp.transcription.detection import detection_warnings
from localgp.transcription.formats import Transcript
from localgp.transcription.gates import GateMasks
from localgp.transcription.inputs import on_disk, readable
from localgp.transcription.jobs import Job, OverlapJob, PauseJob, TimestampJob
from localgp.transcription.request import check_request, target_of, windows_of
from localgp.transcription.samples import as_samples, is_samples
from localgp.transcription.trust import FORGET, NO_SPEECH, repeats, unsure
from localgp.transcription.windows import Stretch, TimeTokens, cut_at_pauses

WORD = "▁"  # what begins a piece that begins a word
LONGEST = (
    448  # positions of a decoder that has any number of them, for text before: half of Whisper's is enough
)

Source = str | Path | np.ndarray | Tensor


class Transcriber:
    """Recordings of any length to text, with one model.

    Args:
        model: In eval mode, on its device; its weights are laid out for inference when they are first needed.
        options: How to decode.
        dtype: Arithmetic of encoder and decoder; features are always fp32.
        windows: How it walks through a long recording unless told otherwise; None: the model's own way.
        extractors: Context name to the extractor of what the gates see besides the speech
            (`localgp.contexts.extract.build_extractor`).
        name: For people: where it was loaded from.
        config: The configuration it was trained with; empty for an untouched backbone.
        metrics: Its scores, where it has some.

    Examples:
        >>> import localgp
        >>> model = localgp.load("embedded")
        >>> model.transcribe("speech.m4a", src="deu", tgt="fra").text          # doctest: +SKIP
    """

    def __init__(
        self,
        model: GatedS2T,
        options: DecodeOptions,
        *,
        dtype: torch.dtype = torch.float32,
        windows: str | None = None,
        extractors: dict[str, Any] | None = None,
        name: str = "",
        config: dict[str, Any] | None = None,
        metrics: dict[str, Any] | None = None,
    ) -> None:
        backbone = model.backbone
        self.model, self.backbone, self.options, self.dtype = model, backbone, options, dtype
        self.windows = windows or windows_of(backbone.tokenizer)[0]
        self.extractors = extractors or {}
        self.name, self.config, self.metrics = name, config or {}, metrics or {}
        self.device = next(model.parameters()).device
        self.sample_rate: int = backbone.sample_rate
        self.window_seconds: float = model.window_seconds
        tokenizer = backbone.tokenizer
        self._times = TimeTokens(
            tokenizer.first_time,
            tokenizer.last_time,
            backbone.padded_seconds / max(1, tokenizer.last_time - tokenizer.first_time),
        )
        self._packed: tuple[float | None, PackedModel] | None = None
        self._searches: dict[DecodeOptions, TaskSearches] = {}

    @property
    def languages(self) -> list[str]:
        """What can be spoken, ISO 639-3."""
        return list(self.backbone.tokenizer.languages)

    def transcribe(
        self,
        files: Source | Sequence[Source],
        src: str | None = None,
        tgt: str | None = None,
        **settings: Any,
    ) -> Any:
        """Transcribes or translates recordings of any length.

        Args:
            files: One file or several; a pipe is read to its end. An array or a tensor, (N,) or (1, N), is samples
                at the model's rate: floats of full scale 1, or integers, scaled by their type.
            src: What is spoken, ``deu`` or ``de``; None: detected from each recording's first window.
            tgt: What is written; None: the spoken language, a transcript.
            settings: As `transcribe_each` takes them.

        Returns:
            A `Transcript`, or a list of them where ``files`` is a list.

        Raises:
            AudioError: A file that cannot be read.
            ConfigError: A language that the model does not have, or a setting that cannot be.
        """
        single = isinstance(files, str | Path | np.ndarray | Tensor)
        sources: list[Source] = [files] if single else list(files)  # type: ignore[list-item, arg-type]
        found: list[Transcript | None] = [None] * len(sources)
        for index, result in self.transcribe_each(sources, src, tgt, **settings):
            if isinstance(result, AudioError):
                raise result
            found[index] = result
        return found[0] if single else found

    def transcribe_each(
        self,
        files: Sequence[Source],
        src: str | None = None,
        tgt: str | None = None,
        *,
        batch: int = 8,
        timestamps: bool | None = None,
        windows: str | None = None,
        max_window: float | None = None,
        temperatures: Sequence[float] | None = None,
        previous: bool = False,
        task: str | None = None,
        before: str = "",
        progress: bool = False,
        **decoding: Any,
    ) -> Iterator[tuple[int, Transcript | AudioError]]:
        """Yields each file's index and its `Transcript`, or the error that kept it from being read, as soon as it
        is finished; files are opened as they are needed.

        Args:
            batch: Windows, of all files, decoded together.
            timestamps: Whether a recording that fits into one window gets predicted times too. None: it does
                not, which is what models are best at; longer ones always do, with ``windows="timestamps"``.
            windows: How a longer recording is walked through (`localgp.transcription.windows`): ``timestamps``, or
                ``overlap`` where the model has CTC alone, or ``pauses``; None: as the model does it best
                (`Transcriber.windows`).
            max_window: Longest piece in seconds where it is cut at pauses; None: the model's window.
            temperatures: What a window with predicted times is decoded at, one after the other, until its text can be
                trusted (`localgp.transcription.trust`); above 0, tokens are drawn. None: as the model does it: Whisper
                0, 0.2, … 1, others 0 alone.
            previous: Give a window with predicted times the text before it.
            task: In place of ``tgt``: ``transcribe``, ``translate`` (into English), or one that the model has by
                name, such as POWSM's ``pr``, ``g2p`` and ``p2g``.
            before: A text to give every window as the one before it, such as that whose phones POWSM's ``g2p`` is to
                write.
            progress: Show a bar of the seconds done.
            decoding: Changes to the model's decode options: ``beam=1``, ``ctc_weight=0``, ...
        """
        options = replace(self.options, **decoding) if decoding else self.options
        options.check(self.backbone.shape.decoder_layers)
        windows = self.windows if windows is None else windows
        longest = check_request(
            self.backbone.tokenizer,
            self.window_seconds,
            src=src,
            tgt=tgt,
            batch=batch,
            windows=windows,
            max_window=max_window,
            ctc_weight=options.ctc_weight,
            temperatures=temperatures,
            task=task,
        )
        tgt = target_of(self.backbone.tokenizer, tgt, task)
        given = self.backbone.tokenizer.encode(before)
        if temperatures is None:
            temperatures = self.backbone.tokenizer.long_form.temperatures
        bar = _Bar(len(files), progress)
        waiting = iter(enumerate(files))
        active: list[tuple[int, Job]] = []
        more = True
        while True:
            while more and sum(len(job.ready()) for _, job in active) < batch:
                item = next(waiting, None)
                more = item is not None
                if item is None:
                    break
                try:
                    active.append((item[0], self._open(item[1], timestamps, windows, longest)))
                except AudioError as error:
                    yield item[0], error
                    bar.file_done()
            picked = self._pick(active, batch)
            if picked:
                self._run(picked, src, tgt, options, temperatures, previous, given)
                bar.advance(sum(job.done_seconds for _, job in active), [j for _, j in active])
            for index, job in [entry for entry in active if not entry[1].ready()]:
                yield index, self._transcript(files[index], job, src, tgt)
                bar.file_done(job)
            active = [entry for entry in active if entry[1].ready()]
            if not active and not more:
                bar.close()
                return

    @torch.inference_mode()
    def gates(self, source: Source) -> GateMasks:
        """What the encoder's gates decide on a recording, window by window, without the padding behind it.

        Args:
            source: As one file of `transcribe`.

        Raises:
            ConfigError: This model's encoder has no gates.

        Examples:
            >>> masks = model.gates("speech.wav")                                  # doctest: +SKIP
            >>> masks.modules["ffn1"][0][masks.times < 1.0]                        # doctest: +SKIP
        """
        if self.model.policy is None or not self.model.policy.modules_gated:
            raise ConfigError(
                "this model's encoder has no gates; load one that was trained with them, such as row05"
            )
        samples_N, _ = self._samples(source)
        found: dict[str, list[Tensor]] = {}
        times = []
        for window in cut_at_pauses(samples_N, self.sample_rate, self.window_seconds):
            encoded = self._encode([samples_N[window.first : window.last]])
            frames = encoded.x.shape[1]
            centres_T = self.backbone.timeline.centres(frames)
            signal = slice(self.backbone.timeline.told, int((centres_T < window.last - window.first).sum()))
            times.append(torch.from_numpy((window.first + centres_T[signal]) / self.sample_rate))
            for name in encoded.gates[0]:
                mask_LT = torch.cat([layer[name].mask.expand(1, frames) for layer in encoded.gates])
                found.setdefault(name, []).append(mask_LT[:, signal].cpu())
        return GateMasks({name: torch.cat(parts, dim=1) for name, parts in found.items()}, torch.cat(times))

    def _samples(self, source: Source) -> tuple[np.ndarray, list[str]]:
        """A recording (N,) at the model's rate, and what a person should know of it."""
        if is_samples(source):
            return as_samples(source, self.sample_rate), []
        if not isinstance(source, str | Path):
            raise AudioError(
                f"{type(source).__name__} is no recording; give a file's path, an array or a tensor"
            )
        try:
            with on_disk(source) as path:
                recording = decode(path, self.sample_rate)
        except OSError as error:
            raise AudioError(f"{readable(source)}: cannot be read ({error.strerror or error})") from error
        return recording.cut().samples, [remark.detail for remark in recording.remarks]

    def _open(self, source: Source, timestamps: bool | None, windows: str, longest: float) -> Job:
        samples, warnings = self._samples(source)
        seconds = len(samples) / self.sample_rate
        tokenizer = self.backbone.tokenizer
        text = tokenizer.decode
        if windows == "overlap" and seconds > self.window_seconds:
            job: Job = OverlapJob(
                samples,
                self.sample_rate,
                text,
                self.window_seconds,
                tokenizer.long_form.context,
                self.backbone.timeline,
                tokenizer.blank,
                lambda label: tokenizer.token_list[label].startswith(WORD),
            )
        elif windows == "timestamps" and (timestamps or seconds > self.window_seconds):
            job = TimestampJob(
                samples,
                self.sample_rate,
                text,
                self._times,
                self.window_seconds,
                by_pairs=tokenizer.long_form.by_pairs,
            )
        else:
            job = PauseJob(samples, self.sample_rate, text, longest)
        job.warnings += warnings
        return job

    @staticmethod
    def _pick(active: list[tuple[int, Job]], batch: int) -> list[tuple[Job, Stretch]]:
        """Windows to decode together: of the first that is ready, and of jobs of its kind."""
        ready = [(job, window) for _, job in active for window in job.ready()]
        return [entry for entry in ready if type(entry[0]) is type(ready[0][0])][:batch]

    @torch.inference_mode()
    def _run(
        self,
        picked: list[tuple[Job, Stretch]],
        src: str | None,
        tgt: str | None,
        options: DecodeOptions,
        temperatures: Sequence[float],
        previous: bool,
        given: list[int],
    ) -> None:
        pieces = [job.samples[window.first : window.last] for job, window in picked]
        unknown = {
            id(job): row for row, (job, _) in reversed(list(enumerate(picked))) if job.language is None
        }
        encoded = None
        if not self.backbone.is_told:
            encoded = self._encode(pieces, options.budget)
        if src is not None:
            for job, _ in picked:
                job.language = self._code(src)
        elif unknown:  # a recording's first window says
            rows = sorted(unknown.values())
            heard = encoded or self._encode([pieces[row] for row in rows], options.budget)
            for place, row in enumerate(rows):
                place = place if encoded is None else row
                self._detect(heard.memory_of(place), picked[row][0])
        tasks = []
        for row, (job, _) in enumerate(picked):
            assert job.language is not None
            target = self._written(tgt, job.language)
            # Contexts know languages by two letters, as the corpora name them.
            tasks.append(Task(row, name_of(job.language), name_of(target)))
        if options not in self._searches:
            self._searches = {  # one set of prepared weights at a time
                options: TaskSearches(self.backbone, options, self.dtype)
            }
        before = [self._before(given + (job.text_before if previous else [])) for job, _ in picked]
        if encoded is None:
            primers = primers_of(self.backbone.tokenizer, tasks, before)
            encoded = self._encode(pieces, options.budget, primers)
        ctc = self._searches[options].ctc
        if picked[0][0].by_frames and ctc is not None:
            labels = ctc.labels(encoded.x, encoded.lengths)
            for (job, window), found_T in zip(picked, labels, strict=True):
                job.accept(window, found_T)
            return
        gates = partial(self.model.step_gates, encoded) if self.model.decoder_policy is not None else None
        timed = picked[0][0].timed
        accepted: list[list[int]] = [[] for _ in picked]
        left = list(range(len(picked)))
        for temperature in temperatures if timed else (0.0,):
            found = self._searches[options](
                *encoded.memory(),
                left,
                [tasks[row] for row in left],
                timestamps=timed,
                gates=gates,
                previous=[before[row] for row in left],
                temperature=temperature,
            )
            again = []
            for row, written in zip(left, found, strict=True):
                accepted[row] = self._text_of(written.tokens)
                if written.confidence is None:
                    continue
                if unsure(written.confidence) and self._nothing_said(encoded, row, before[row]):
                    accepted[row] = []
                elif unsure(written.confidence) or repeats(self.backbone.tokenizer.decode(accepted[row])):
                    again.append(row)
                picked[row][0].forgets = temperature >= FORGET
            left = again
            if not left:
                break
        for (job, window), tokens in zip(picked, accepted, strict=True):
            job.accept(window, tokens)

    def _text_of(self, tokens: list[int]) -> list[int]:
        eos = self.backbone.tokenizer.eos
        ended = (
            eos in tokens and self.backbone.shape.decoder_layers
        )  # of a decoder; to CTC it is a label like any other
        return tokens[: tokens.index(eos)] if ended else tokens

    def _before(self, text: list[int]) -> list[int]:
        return self.backbone.tokenizer.previous(text, self.backbone.shape.longest or LONGEST)

    def _nothing_said(self, encoded: EncoderOutput, row: int, before: list[int]) -> bool:
        """By the probability of the symbol for it behind the start."""
        symbol = self.backbone.tokenizer.long_form.no_speech
        if symbol is None:
            return False
        logits_V = self._first_logits(encoded.memory_of(row), before)
        return float(logits_V.softmax(-1)[symbol]) > NO_SPEECH

    def _encode(
        self,
        pieces: Sequence[np.ndarray],
        budget: float | None = None,
        primers: Sequence[list[int]] | None = None,
    ) -> EncoderOutput:
        samples = self.model.samples
        pieces = [piece_N[:samples] for piece_N in pieces]
        padded_BN = np.zeros((len(pieces), samples), dtype=np.float32)
        for row, piece_N in enumerate(pieces):
            padded_BN[row, : len(piece_N)] = piece_N
        ends_B = torch.tensor([len(piece_N) for piece_N in pieces], device=self.device)
        contexts = self._contexts(pieces, samples)
        if self._packed is None or self._packed[0] != budget:  # one set of prepared weights at a time
            self._packed = budget, self.model.packed(self.dtype, budget)
        return self._packed[1].encode(torch.from_numpy(padded_BN).to(self.device), ends_B, contexts, primers)

    def _contexts(self, pieces: Sequence[np.ndarray], samples: int) -> dict[str, Tensor] | None:
        """What the gates see besides the speech, extracted from each window by itself, as in training."""
        if not self.extractors:
            return None
        contexts = [
            {
                name: place_context(
                    extractor.extract(piece_N), extractor.step, 0, samples, self.backbone.timeline
                )
                for name, extractor in self.extractors.items()
            }
            for piece_N in pieces
        ]
        return {name: value.to(self.device) for name, value in stack_contexts(contexts).items()}

    def _detect(self, memory_TD: Tensor, job: Job) -> None:
        """The model's own language identification: the language token it predicts first, or, of CTC alone, anywhere."""
        if len(self.languages) == 1:
            job.language = self.languages[0]
            return
        if self.backbone.shape.decoder_layers:
            logits_V = self._first_logits(memory_TD)
        else:
            logits_V = self.backbone.output_layer(memory_TD.float()).log_softmax(-1).amax(0)
        probability_V = logits_V[list(self.backbone.tokenizer.language_ids)].softmax(-1)
        best = int(probability_V.argmax())
        job.language, job.language_probability = self.languages[best], float(probability_V[best])
        job.warnings += detection_warnings(self.languages, probability_V.tolist())

    def _first_logits(self, memory_TD: Tensor, before: Sequence[int] = ()) -> Tensor:
        """Scores (V,) of what follows the start."""
        start = [*before, *self.backbone.tokenizer.start]
        start_1L = torch.tensor([start], device=self.device)
        frames_1, count_1 = (torch.tensor([n], device=self.device) for n in (len(memory_TD), len(start)))
        memory_1TD = memory_TD.unsqueeze(0).float()
        return decode_tokens(self.backbone, memory_1TD, frames_1, start_1L, count_1).logits[0, -1].float()

    def _code(self, language: str) -> str:
        return self.backbone.tokenizer.code(language)

    def _written(self, tgt: str | None, spoken: str) -> str:
        """The model's code of the language that is written, or the symbol of a task of its own."""
        if tgt is None or tgt.startswith("<"):
            return tgt or spoken
        return self._code(tgt)

    def _untaught(self, spoken: str, written: str) -> list[str]:
        """A warning where a published model is asked for what it does by chance at most."""
        known = self.backbone.tokenizer.translates_into
        fine_tuned = bool(self.config)
        if known is None or fine_tuned or written.startswith("<") or written in (spoken, *known):
            return []
        return [
            f"this model was not taught to translate into {written}, only into {', '.join(known)}; "
            "a model that was fine-tuned for it is"
        ]

    def _transcript(self, source: Source, job: Job, src: str | None, tgt: str | None) -> Transcript:
        # A recording without any sound has no language of its own.
        language = job.language or (self._code(src) if src else "und")
        written = self._written(tgt, language)
        job.warnings += self._untaught(language, written)
        return Transcript(
            readable(source) if isinstance(source, str | Path) else "array",
            round(job.seconds, 3),
            language,
            written.strip("<>"),
            None if job.language_probability is None else round(job.language_probability, 4),
            job.segments,
            job.warnings,
        )


class _Bar:
    """Seconds of audio done and files left, on standard error where that is a terminal."""

    def __init__(self, files: int, wanted: bool) -> None:

        self._bar = tqdm(
            total=0.0,
            unit="s",
            disable=None if wanted else True,
            bar_format="{n:.0f}/{total:.0f} s of audio  {bar}  {elapsed}{postfix}",
        )
        self._files, self._finished, self._behind = files, 0, 0.0

    def advance(self, seconds: float, jobs: Sequence[Job]) -> None:
        self._bar.total = self._behind + sum(job.seconds for job in jobs)
        self._bar.n = self._behind + seconds
        self._bar.refresh()

    def file_done(self, job: Job | None = None) -> None:
        self._finished += 1
        self._behind += job.seconds if job else 0.0
        self._bar.set_postfix_str(f"{self._finished}/{self._files} files")

    def close(self) -> None:
        self._bar.close()
