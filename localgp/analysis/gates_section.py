"""The report's section on what the gates of each run do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from localgp.analysis.analyze import token_test_rows
from localgp.analysis.collect import Evaluated, Group
from localgp.analysis.context_attention import attention_table
from localgp.analysis.figures import agreement_figure, mask_figure, relations_figure, varied
from localgp.analysis.html import Page, caption, details, heat_table
from localgp.analysis.speaker_swap import swap_table
from localgp.analysis.study import Corpora, Study, telling_utterance
from localgp.analysis.tables import Table
from localgp.analysis.tokens import token_figure, token_summary, typical_tokens
from localgp.evaluation.decoder_gates_file import read_decoder_gates


def gates_section(page: Page, groups: Sequence[Group], studies: dict[str, Study], corpora: Corpora) -> None:
    """A comparison over all gated runs, then one part for each: its first seed stands for it.

    Variants of an experiment (the points of a sweep) have their shares shown, without figures of their own.
    """
    gated = [(g, studies[g.runs[0].key]) for g in groups if g.runs[0].key in studies]
    decoders = [g for g in groups if _decoder_gates(g.runs[0]).exists()]
    if not gated and not decoders:
        return
    page.heading("What the gates do")
    _captioned(
        page,
        agreement_table([found for _, found in gated]),
        "Do gates find speech? Each mask against the true speech that the corpus's maker knows, over frames "
        "with signal, averaged over layers and modules; after the slash an energy VAD that opens as many "
        "frames of each utterance. AUC of a mask is the mean of true positive and true negative rate: 0.5 is "
        "chance.",
    )
    _captioned(
        page,
        swap_table([found.run for _, found in gated]),
        "Do gates hang on the speaker? Share of frames with signal, in percent, whose gate flips when the "
        "encoder decides again with another voice's embedding (for the control, which has wrong ones, with "
        "the right one), averaged over layers; beside it with the same embedding, which rounding alone can "
        "flip. From python -m localgp.analyze.",
    )
    _captioned(
        page,
        attention_table([found.run for _, found in gated]),
        "Whom do the gates listen to? LocalGP's attention weight of each context, and of the earlier layers' "
        "inputs together, in percent, averaged over layers and frames with signal. A context with no weight "
        "cannot change a gate, and does not learn to. From python -m localgp.analyze.",
    )
    for position, (g, found) in enumerate(gated):
        parts = [heat_table(found), _heat_caption(found)]
        if "-" not in g.name:
            parts += _figures(page, found, corpora)
        page.raw(details(f"Gates of {g.name}, seed {found.run.seed}", *parts, opened=position == 0))
    for g in decoders:
        page.raw(
            details(f"Decoder gates of {g.name}, seed {g.runs[0].seed}", *_decoder_parts(page, g.runs[0]))
        )


def _captioned(page: Page, table: Table | None, text: str) -> None:
    if table is not None:
        page.raw(table.html())
        page.raw(caption(text))


def agreement_table(studies: Sequence[Study]) -> Table | None:
    """One row for every run with a known truth: the mask's figure, and the energy VAD's at the same share."""
    rows = []
    for found in studies:
        a = found.agreement
        if a is None:
            continue
        cells = [
            f"{_mean(getattr(a, name))} / {_mean(getattr(a, f'energy_{name}'))}"
            for name in ("precision", "recall", "auc")
        ]
        first = [
            f"{_mean(a.auc[0])} / {_mean(a.energy_auc[0])}",
            f"{_mean(a.auc[-1])} / {_mean(a.energy_auc[-1])}",
        ]
        rows.append([f"{found.run.name}, seed {found.run.seed}", *cells, *first, f"{a.speech_share:.3f}"])
    if not rows:
        return None
    header = ["run", "precision", "recall", "AUC", "AUC, first layer", "AUC, last layer", "share of speech"]
    return Table(header, rows)


def _mean(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.mean():.3f}" if len(finite) else "-"


def _heat_caption(found: Study) -> str:
    known = "" if found.speech_UT is None else " Speech and pauses are the true ones of the corpus's maker."
    languages = found.kept_by_language("real")
    spoken = "; ".join(
        f"{language} {100 * kept_M.mean():.1f} %"
        for language, kept_M in languages.items()
        if np.isfinite(kept_M).all()
    )
    by_language = f" Of real frames, by language: {spoken}." if spoken else ""
    return caption(
        f"Share of frames, in percent, on which each module of each layer runs, over {len(found.record.utt_ids)} "
        f"utterances, from the stored gates. Real frames are those with signal.{known}{by_language} The encoder does "
        "not see the task, so the shares are the same for recognition and translation."
    )


def _figures(page: Page, found: Study, corpora: Corpora) -> list[str]:
    record = found.record
    utterance = telling_utterance(found)
    utt_id = record.utt_ids[utterance]
    utterances = corpora.of(found.run, record.utt_ids)
    samples = None if utterances is None else utterances.samples(utt_id)
    truth = None if utterances is None else utterances.truth.get(utt_id)
    text = (
        f"{utt_id} through {found.run.name}, seed {found.run.seed} (the paper's Figure 1): orange where a module runs, "
        "layers from bottom to top, padding right of the dashed line."
    )
    if samples is not None:
        text += " On top the log-mel spectrogram (80 bands, 60 dB)."
    if truth is not None:
        text += " Blue: true speech. The utterance is the one with most pause between words."
    made = [page.figure(mask_figure(found, utterance, samples, truth), text, wide=True)]
    if found.agreement is not None:
        made.append(
            page.figure(
                agreement_figure(found),
                "Agreement of each module's mask with true speech, by layer, over frames with signal. Dotted, in the "
                "same colour: an energy VAD that opens as many frames of each utterance, the loudest. Grey: keeping "
                "everything (precision), chance (AUC).",
                wide=True,
            )
        )
    if varied(found):
        made.append(
            page.figure(
                relations_figure(found),
                "Share of an utterance's frames with signal that run, averaged over layers and modules. A point is an "
                "utterance, the line joins means of fifths. Word rate is over true speech where it is known, else "
                "over the segment; utterances without added noise have no ratio.",
                wide=len(varied(found)) > 1,
            )
        )
    return made


def _decoder_gates(run: Evaluated) -> Path:
    return run.gates.with_name(f"{run.metrics['data']['split']}.decoder.npz")


def _decoder_parts(page: Page, run: Evaluated) -> list[str]:
    record = read_decoder_gates(_decoder_gates(run))
    return [
        page.figure(
            token_figure(record, typical_tokens(record)),
            "How often each decoder module of each layer runs for common tokens (the paper's Figure 2, which shows one "
            "occurrence each); the first layer is on top, [Space] begins a word.",
            wide=True,
        ),
        Table(*token_test_rows(token_summary(record)["tests"])).html(),
        caption(
            "Share of layers in which a module runs, tokens that begin a word against all others (the paper's Table 2, "
            "which tests source attention on German recognition): Mann-Whitney U and Welch's t, two-sided."
        ),
    ]
