"""SPIRAL accuracy by method and pruning rate, on all and on the hard subset, with the cost beside it.

How an answer is read is not in the paper. ``answer="likelihood"`` takes the most probable of the four letters as
the first token of the reply: one prefill, and every question is answered. ``answer="generate"`` decodes greedily
and looks for a letter or the text of a choice; what has neither counts as wrong and as unanswered.

The row at rate 0 is the untouched model on the first 30 s. For audio whose sentence times are known,
``key_recall`` is the share of the answer's audio tokens that the language model still sees; a method that chooses
by chance has ``kept_share``, of the whole audio.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from localgp.corpora.audio import read_audio
from localgp.errors import ConfigError
from localgp.speechprune.dimensions import Dimensions, flops_row
from localgp.speechprune.memory import peak_memory
from localgp.speechprune.methods import Pruner
from localgp.speechprune.qwen2_audio import SAMPLE_RATE, Encoded, Pruned, Request, SpeechPrune
from localgp.speechprune.spiral import LETTERS, Question

ANSWERS = ("likelihood", "generate")
QUERIES = ("question", "prompt")
_SECONDS_PER_TOKEN = 0.04
_TOKENS_PER_SAMPLE = 1 / (_SECONDS_PER_TOKEN * SAMPLE_RATE)


def evaluate(
    speech: SpeechPrune,
    questions: Sequence[Question],
    pruners: Sequence[Pruner],
    *,
    answer: str = "likelihood",
    query: str = "question",
    batch: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """One row per pruner: accuracy, tokens, recall of the key sentence, FLOPs, seconds and memory per question.

    Args:
        speech: The model.
        questions: With readable audio.
        pruners: Methods and rates.
        answer: ``likelihood`` or ``generate``.
        query: What phase 1 compares the audio with: the ``question`` alone (what is asked for; the wrong choices
            are three quarters of the rest), or the user's whole ``prompt``.
        batch: Questions at a time. Times are per question of a batch.
        progress: Called with the number of questions done.
    """
    check(answer, query)
    dims = Dimensions.of(speech.model.config)
    tallies: list[dict[str, list[float]]] = [defaultdict(list) for _ in pruners]
    for start in range(0, len(questions), batch):
        some = questions[start : start + batch]
        requests = [
            Request(
                read_audio(item.audio),
                item.prompt(),
                item.question if query == "question" else item.prompt(),
                item.id,
            )
            for item in some
        ]
        encodings: dict[
            bool, Encoded
        ] = {}  # untouched: 30 s; otherwise the whole audio, once for all pruners
        for pruner, tally in zip(pruners, tallies, strict=True):
            whole = not pruner.untouched
            if whole not in encodings:
                encodings[whole] = speech.encode(requests, whole)
            _one(speech, some, requests, encodings[whole], pruner, tally, dims, answer)
        progress(min(start + batch, len(questions)))
    return [_row(pruner, tally) for pruner, tally in zip(pruners, tallies, strict=True)]


def check(answer: str, query: str) -> None:
    """Raises ConfigError unless both are known."""
    if answer not in ANSWERS:
        raise ConfigError(f"answer is {answer!r}; valid: {', '.join(ANSWERS)}")
    if query not in QUERIES:
        raise ConfigError(f"query is {query!r}; valid: {', '.join(QUERIES)}")


def _one(
    speech: SpeechPrune,
    some: Sequence[Question],
    requests: Sequence[Request],
    encoded: Encoded,
    pruner: Pruner,
    tally: dict[str, list[float]],
    dims: Dimensions,
    answer: str,
) -> None:
    pruned = speech.prune(encoded, pruner)
    device = speech.model.device
    with peak_memory(device) as peak:
        began = speech.now()
        logits_BTV = speech.prefill(pruned)
        seconds = speech.now() - began
    given = (
        list(_likeliest(speech, logits_BTV))
        if answer == "likelihood"
        else list(_generated(speech, pruned, some))
    )
    for index, (question, letter) in enumerate(zip(some, given, strict=True)):
        right = float(letter == question.letter)
        tally["accuracy"].append(right)
        tally["accuracy_hard" if question.hard else "accuracy_easy"].append(right)
        tally["unanswered"].append(float(letter is None))
        tokens, kept = encoded.audio_tokens()[index], len(pruned.kept[index])
        tally["audio_tokens"].append(tokens)
        tally["kept_tokens"].append(kept)
        tally["kept_share"].append(kept / max(tokens, len(requests[index].audio) * _TOKENS_PER_SAMPLE))
        if question.key_times is not None:
            tally["key_recall"].append(key_recall(pruned.kept[index], question.key_times))
        other = int(pruned.mask_BT[index].sum()) - kept
        cost = flops_row(
            dims,
            tokens,
            kept,
            other=other,
            query=len(encoded.queries[index]),
            method=None if pruner.untouched else pruner.method,
            budget=pruner.budget,
        )
        for name in ("tflops", "tflops_with_quadratic", "tflops_end_to_end"):
            tally[name].append(float(cost[name] or 0.0))
        tally["seconds_audio"].append(encoded.seconds / len(some))
        tally["seconds_prune"].append(pruned.seconds / len(some))
        tally["seconds_prefill"].append(seconds / len(some))
        if peak["mib"] is not None:
            tally["peak_mib"].append(peak["mib"])


def key_tokens(times: tuple[float, float]) -> range:
    """Audio tokens that a stretch of time touches; windows are full but for the last, so 40 ms each all along."""
    return range(math.floor(times[0] / _SECONDS_PER_TOKEN), math.ceil(times[1] / _SECONDS_PER_TOKEN))


def key_recall(kept: torch.Tensor, times: tuple[float, float]) -> float:
    """Share of a stretch's audio tokens that are among ``kept``."""
    wanted = key_tokens(times)
    inside = (kept >= wanted.start) & (kept < wanted.stop)
    return int(inside.sum()) / len(wanted)


def _likeliest(speech: SpeechPrune, logits_BTV: torch.Tensor) -> Iterator[str]:
    tokenizer = speech.processor.tokenizer
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in LETTERS]
    for index in (
        logits_BTV[:, -1, letters].argmax(-1).tolist()
    ):  # left padding: the last position is the prompt's
        yield LETTERS[index]


def _generated(speech: SpeechPrune, pruned: Pruned, some: Sequence[Question]) -> Iterator[str | None]:
    tokens = speech.generate(pruned, max_new_tokens=32, do_sample=False)
    for reply, question in zip(
        speech.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True), some, strict=True
    ):
        yield read_answer(reply, question)


def read_answer(reply: str, question: Question) -> str | None:
    """The letter that a reply chooses, or None.

    The first capital letter A to D standing alone (not the article in "A bird …" unless the reply starts with
    "A." or the like), or else the one choice whose text the reply contains.
    """
    if match := re.match(r"\W*([A-D])(?:[.):,]|\s*$)", reply):
        return match[1]
    if match := re.search(
        r"\b([B-D])\b|\bA(?=[.):])|\b(?:is|answer|choice|option):? \(?(A)\b(?! [a-z])", reply
    ):
        return match[1] or "A"
    said = [
        letter
        for letter, choice in zip(LETTERS, question.choices, strict=True)
        if choice.strip(" .").lower() in reply.lower()
    ]
    return said[0] if len(said) == 1 else None


def _row(pruner: Pruner, tally: dict[str, list[float]]) -> dict[str, Any]:
    def mean(name: str) -> float | None:
        return sum(tally[name]) / len(tally[name]) if tally[name] else None

    names = (
        *(
            "accuracy",
            "accuracy_hard",
            "unanswered",
            "audio_tokens",
            "kept_tokens",
            "kept_share",
            "key_recall",
        ),
        *("tflops", "tflops_with_quadratic", "tflops_end_to_end"),
        *("seconds_audio", "seconds_prune", "seconds_prefill", "peak_mib"),
    )
    method = "original" if pruner.untouched else pruner.method
    return {"method": method, "rate": pruner.rate, **{name: mean(name) for name in names}}
