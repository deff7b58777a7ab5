"""Figures and numbers of one evaluated run, from its stored gates: nothing is decoded again.

What happens with another speaker's embedding no stored gate tells: the encoder alone runs again for that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from localgp.errors import ConfigError, LocalGPError
from localgp.evaluation.decoder_gates_file import read_decoder_gates
from localgp.evaluation.table import format_table
from localgp.report.encoded_again import context_attention, listens, sees_speaker, speaker_swap
from localgp.report.figures import agreement_figure, kept_figure, mask_figure, relations_figure, varied
from localgp.report.runs import Evaluated, read_run
from localgp.report.study import Study, study, telling_utterance
from localgp.report.style import save_figure
from localgp.report.tokens import token_figure, token_summary, typical_tokens
from localgp.report.utterances import Corpora
from localgp.run import Run, write_atomically


def analyze(cfg: DictConfig) -> tuple[str, list[Path]]:
    """Writes ``<run>/analysis/<split>/``: analysis.json and the figures (docs/analysis.md).

    Returns:
        The tables for the terminal, and the files.

    Raises:
        CheckpointError: The run has not been evaluated, or it is dense and has no gates.
        ConfigError: An option that cannot be.
    """
    options = cfg.analyze
    run = read_run(Run(cfg).path)
    split = run.metrics["data"]["split"]
    folder = run.path / "analysis" / split
    decoder_gates = run.path / "gates" / f"{split}.decoder.npz"
    summary: dict[str, Any] = {}
    texts, files = [], []
    if run.gates.exists() or not decoder_gates.exists():
        corpora = Corpora(Path(cfg.data_dir))
        found = study(run, corpora)
        summary |= found.summary()
        texts.append(encoder_text(found))
        if options.swap_utterances:
            if sees_speaker(cfg):
                summary["speaker_swap"], text = _swap(cfg, found, corpora, options.swap_utterances)
                texts.append(text)
            if listens(cfg):
                summary["context_attention"], text = _attention(cfg, found, corpora, options.swap_utterances)
                texts.append(text)
        files += _encoder_figures(found, corpora, options, folder)
    if decoder_gates.exists():
        record = read_decoder_gates(decoder_gates)
        summary["decoder"] = token_summary(record)
        texts.append(decoder_text(summary["decoder"]))
        pieces = [str(piece) for piece in options.tokens or ()] or typical_tokens(record)
        unknown = [p for p in pieces if p not in record.pieces]
        if unknown:
            raise ConfigError(
                f"analyze.tokens: {', '.join(unknown)} not among the tokens of {decoder_gates}; common ones are "
                f"{', '.join(typical_tokens(record, 5))}"
            )
        files.append(save_figure(token_figure(record, list(pieces)), folder / f"figure2.{options.format}"))
    write_atomically(folder / "analysis.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return "\n\n".join(texts), [folder / "analysis.json", *files]


def _swap(cfg: DictConfig, found: Study, corpora: Corpora, limit: int) -> tuple[dict[str, Any] | None, str]:
    """For analysis.json and the terminal; where the weights, the corpus or the extractor is not at hand, why not."""
    try:
        weights, utterances = _evaluated_weights(cfg, found), corpora.of(found.run, found.record.utt_ids)
        swap = speaker_swap(cfg, weights, found.record, utterances, limit)
    except LocalGPError as error:
        return None, f"gates with the speaker swapped: left out, since {error}"
    other = "another speaker's" if swap.trained_with == "own" else "the right speaker's"
    return swap.summary(), (
        f"share of frames with signal whose gate flips with {other} embedding, {swap.utterances} utterances, %; beside "
        f"it with the same one, which rounding alone can flip\n\n{format_table(*swap.rows())}"
    )


def _attention(
    cfg: DictConfig, found: Study, corpora: Corpora, limit: int
) -> tuple[dict[str, Any] | None, str]:
    """As `_swap`."""
    try:
        weights, utterances = _evaluated_weights(cfg, found), corpora.of(found.run, found.record.utt_ids)
        attention = context_attention(cfg, weights, found.record, utterances, limit)
    except LocalGPError as error:
        return None, f"attention over the contexts: left out, since {error}"
    return attention.summary(), (
        f"mean attention of the gates over contexts and earlier layers' inputs, frames with signal of "
        f"{attention.utterances} utterances, %\n\n{format_table(*attention.rows())}"
    )


def _evaluated_weights(cfg: DictConfig, found: Study) -> Path:
    """The weights whose gates were stored.

    Raises:
        CheckpointError: They are not there, or of another configuration.
    """
    run = Run(cfg)
    run.check(trained=True)
    checkpoint = (found.run.metrics.get("asked") or {}).get("checkpoint")
    return Path(checkpoint) if checkpoint else run.require_weights()


def _encoder_figures(found: Study, corpora: Corpora, options: DictConfig, folder: Path) -> list[Path]:
    record = found.record
    if options.utterance is None:
        chosen = telling_utterance(found)
    elif options.utterance in record.utt_ids:
        chosen = record.utt_ids.index(options.utterance)
    else:
        raise ConfigError(
            f"analyze.utterance is {options.utterance!r}, which this run did not decode; it has "
            f"{', '.join(record.utt_ids[:3])}, … ({len(record.utt_ids)} in all)"
        )
    utt_id = record.utt_ids[chosen]
    utterances = corpora.of(found.run, record.utt_ids)
    samples = None if utterances is None else utterances.samples(utt_id)
    truth = None if utterances is None else utterances.truth.get(utt_id)
    figures = {"figure1": mask_figure(found, chosen, samples, truth), "kept": kept_figure(found)}
    if found.agreement is not None:
        figures["vad_agreement"] = agreement_figure(found)
    if varied(found):
        figures["relations"] = relations_figure(found)
    return [save_figure(figure, folder / f"{name}.{options.format}") for name, figure in figures.items()]


def _percent(value: float) -> str:
    return "-" if not np.isfinite(value) else f"{100 * value:.1f}"


def kept_rows(found: Study) -> tuple[list[str], list[list[str]]]:
    """Share of frames that run, percent: a row for every module, and their average."""
    regions = ("all", "real", *found.counts.regions)
    kept = {region: found.counts.kept(region).mean(0) for region in regions}
    rows = [
        [module, *(_percent(kept[region][m]) for region in regions)]
        for m, module in enumerate(found.counts.modules)
    ]
    return ["module", *regions], [*rows, ["average", *(_percent(kept[region].mean()) for region in regions)]]


def agreement_rows(found: Study) -> tuple[list[str], list[list[str]]]:
    """Agreement with true speech by module and layer, the energy VAD's figure at the same share beside each."""
    a = found.agreement
    assert a is not None
    header = ["module", "layer"]
    for name in ("precision", "recall", "AUC"):
        header += [name, "energy VAD"]
    rows = []
    for m, module in enumerate(found.counts.modules):
        for layer in range(found.record.open.shape[1]):
            row = [module, str(layer + 1)]
            for name in ("precision", "recall", "auc"):
                for value_LM in (getattr(a, name), getattr(a, f"energy_{name}")):
                    value = value_LM[layer, m]
                    row.append("-" if not np.isfinite(value) else f"{value:.3f}")
            rows.append(row)
    return header, rows


def relation_rows(found: Study) -> tuple[list[str], list[list[str]]]:
    rows = []
    for name, relations in found.relations.items():
        for module, r in relations.items():
            cells = ["-"] * 3 if r is None else [f"{r.rho:+.3f}", f"{r.p:.2g}", str(r.n)]
            rows.append([name, module, *cells])
    return ["kept against", "module", "Spearman's rho", "p", "n"], rows


def encoder_text(found: Study) -> str:
    run: Evaluated = found.run
    parts = [
        f"{run.key}: encoder gates of {len(found.record.utt_ids)} {run.metrics['data']['split']} utterances\n"
        "share of frames that run, %",
        format_table(*kept_rows(found)),
    ]
    languages = found.kept_by_language("real")
    if languages:
        rows = [[code, *(_percent(v) for v in kept_M)] for code, kept_M in languages.items()]
        parts += ["of real frames, by language, %", format_table(["language", *found.counts.modules], rows)]
    if found.agreement is None:
        parts.append(
            "agreement with true speech: not known for these utterances (only a generated corpus keeps the truth)"
            if languages
            else "the corpus is not prepared here (python -m localgp.prepare): no spectrogram, languages or truth"
        )
    else:
        a = found.agreement
        parts += [
            f"agreement with true speech over frames with signal, {100 * a.speech_share:.1f} % of which are speech; "
            f"energy VAD at the same share kept beside it, over all thresholds its AUC is {a.energy_curve_auc:.3f}",
            format_table(*agreement_rows(found)),
        ]
    if found.relations:
        parts.append(format_table(*relation_rows(found)))
    return "\n\n".join(parts)


def token_test_rows(tests: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Table 2 with effect sizes: `localgp.report.tokens.TokenTest` by task and module."""
    header = ["task", "module", "n word-initial", "n other", "used", "used, other", "U", "p", "rank-biserial"]
    header += ["Welch's t", "p", "Cohen's d"]
    rows = []
    for task, by_module in tests.items():
        for module, t in by_module.items():
            formats = {
                "n_initial": "d",
                "n_other": "d",
                "mean_initial": ".3f",
                "mean_other": ".3f",
                "u": ".4g",
                "u_p": ".2g",
                "rank_biserial": "+.3f",
                "t": ".2f",
                "t_p": ".2g",
                "cohens_d": "+.2f",
            }
            values = {key: None if t is None else t[key] for key in formats}
            cells = ["-" if v is None else format(v, formats[key]) for key, v in values.items()]
            rows.append([task, module, *cells])
    return header, rows


def decoder_text(summary: dict[str, Any]) -> str:
    return (
        f"decoder gates of {summary['tokens']} tokens: share of layers in which a module runs, tokens that begin a "
        "word against all others (Table 2)\n\n" + format_table(*token_test_rows(summary["tests"]))
    )
