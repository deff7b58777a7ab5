"""WER by jiwer and BLEU by sacrebleu, on stated text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from localgp.errors import ConfigError

NORMALIZERS = ("none", "basic")


def basic_normalize(text: str) -> str:
    """Whisper's basic rules, under which OWSM's published WERs were measured: lower case, no text in brackets,
    marks, symbols and punctuation to spaces, white space collapsed; diacritics stay.

    Examples:
        >>> basic_normalize("L'Europa, (applausi) è Unita!")
        'l europa è unita'
    """
    text = re.sub(r"[<\[][^>\]]*[>\]]", "", text.lower())
    text = re.sub(r"\(([^)]+?)\)", "", text)
    text = "".join(
        " " if unicodedata.category(c)[0] in "MSP" else c for c in unicodedata.normalize("NFKC", text)
    )
    return " ".join(text.split())


def normalize(text: str, name: str) -> str:
    """A text after the named normalisation.

    Raises:
        ConfigError: For a normaliser that does not exist.
    """
    if name == "none":
        return " ".join(text.split())
    if name == "basic":
        return basic_normalize(text)
    raise ConfigError(f"evaluate.normalizer is {name!r}; valid: {', '.join(NORMALIZERS)}")


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Percent, over all words of the set."""
    import jiwer

    return 100.0 * float(jiwer.wer(list(references), list(hypotheses)))


def bleu(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, str]:
    """Corpus BLEU (0 to 100) with sacrebleu's defaults, and its signature."""
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    score = metric.corpus_score(list(hypotheses), [list(references)])
    return float(score.score), str(metric.get_signature())


def score_tasks(pairs: dict[str, tuple[list[str], list[str]]], normalizer: str) -> dict[str, Any]:
    """Scores of all tasks.

    Args:
        pairs: Task name (``de``, ``de-fr``) to references and hypotheses. Names with a dash are translations.
        normalizer: Applied before WER; BLEU is on the text as it is, with sacrebleu's own tokenisation.

    Returns:
        ``wer`` and ``bleu`` by task with an ``average`` each, and ``signature``.
    """
    wer: dict[str, float] = {}
    bleus: dict[str, float] = {}
    signature = ""
    for task, (references, hypotheses) in pairs.items():
        if "-" in task:
            bleus[task], signature = bleu(references, hypotheses)
        else:
            wer[task] = word_error_rate(
                [normalize(t, normalizer) for t in references], [normalize(t, normalizer) for t in hypotheses]
            )
    for scores in (wer, bleus):
        if scores:
            scores["average"] = sum(scores.values()) / len(scores)
    return {
        "wer": {k: round(v, 3) for k, v in wer.items()},
        "bleu": {k: round(v, 3) for k, v in bleus.items()},
        "signature": {"bleu": signature, "wer": f"jiwer, words, percent, normalizer: {normalizer}"},
    }


def references_of(rows: Any) -> dict[str, dict[str, str]]:
    """Task name to utterance id to reference, from prepared rows."""
    references: dict[str, dict[str, str]] = {}
    for row in rows.select_columns(["utt_id", "language", "transcript", "targets", "translations"]):
        source = row["language"]
        references.setdefault(source, {})[row["utt_id"]] = row["transcript"]
        for target, text in zip(row["targets"], row["translations"], strict=True):
            references.setdefault(f"{source}-{target}", {})[row["utt_id"]] = text
    return references
