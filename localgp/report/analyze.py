"""Figures and numbers of one evaluated run, from its stored gates: nothing is decoded again.

What happens with another speaker's embedding no stored gate tells: the encoder alone runs again for that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from localgp.errors import ConfigError, LocalGPError
from localgp.evaluation.decoder_gates_file import read_decoder_gates
from localgp.report.encoded_again import context_attention, listens, sees_speaker, speaker_swap
from localgp.report.figures import agreement_figure, kept_figure, mask_figure, relations_figure, varied
from localgp.report.runs import Evaluated, read_run
from localgp.report.study import Study, study, telling_utterance
from localgp.report.style import save_figure
from localgp.report.tokens import token_figure, token_summary, typical_tokens
from localgp.report.utterances import Corpora
from localgp.run import Run, write_atomically
from localgp.tables import Column, Table, in_percent, render


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
        f"it with the same one, which rounding alone can flip\n\n{swap.table()}"
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
        f"{attention.utterances} utterances, %\n\n{attention.table()}"
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


def kept_table(found: Study) -> Table:
    """Share of frames that run, percent: a row for every module, and their average."""
    regions = ("all", "real", *found.counts.regions)
    kept = {region: found.counts.kept(region).mean(0) for region in regions}
    rows = [(m, {r: kept[r][i] for r in regions}) for i, m in enumerate(found.counts.modules)]
    rows.append(("average", {r: kept[r].mean() for r in regions}))
    shares = [Column(r, (1, r), in_percent(1)) for r in regions]
    return render(rows, [Column("module", 0), *shares])


def agreement_by_layer(found: Study) -> Table:
    """Agreement with true speech by module and layer, the energy VAD's figure at the same share beside each."""
    a = found.agreement
    assert a is not None
    columns = [
        Column("module", lambda row: found.counts.modules[row[1]]),
        Column("layer", lambda row: row[0] + 1),
    ]
    for name, heading in (("precision", "precision"), ("recall", "recall"), ("auc", "AUC")):
        for values_LM, shown in ((getattr(a, name), heading), (getattr(a, f"energy_{name}"), "energy VAD")):
            columns.append(Column(shown, values_LM.__getitem__, ".3f"))
    layers, modules = found.record.open.shape[1], len(found.counts.modules)
    return render([(layer, m) for m in range(modules) for layer in range(layers)], columns)


def relation_table(found: Study) -> Table:
    rows = [(name, *one) for name, by_module in found.relations.items() for one in by_module.items()]
    figures = [
        Column("Spearman's rho", lambda row: row[2] and row[2].rho, "+.3f"),
        Column("p", lambda row: row[2] and row[2].p, ".2g"),
        Column("n", lambda row: row[2] and row[2].n),
    ]
    return render(rows, [Column("kept against", 0), Column("module", 1), *figures])


def encoder_text(found: Study) -> str:
    run: Evaluated = found.run
    parts = [
        f"{run.key}: encoder gates of {len(found.record.utt_ids)} {run.metrics['data']['split']} utterances\n"
        "share of frames that run, %",
        str(kept_table(found)),
    ]
    languages = found.kept_by_language("real")
    if languages:
        shares = [Column(n, (1, m), in_percent(1)) for m, n in enumerate(found.counts.modules)]
        table = render(languages.items(), [Column("language", 0), *shares])
        parts += ["of real frames, by language, %", str(table)]
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
            str(agreement_by_layer(found)),
        ]
    if found.relations:
        parts.append(str(relation_table(found)))
    return "\n\n".join(parts)


def token_test_table(tests: dict[str, dict[str, Any]]) -> Table:
    """Table 2 with effect sizes: `localgp.report.tokens.TokenTest` by task and module."""
    rows = [{"task": t, "module": m} | (test or {}) for t, of in tests.items() for m, test in of.items()]
    return render(
        rows,
        [
            Column("task", "task"),
            Column("module", "module"),
            Column("n word-initial", "n_initial"),
            Column("n other", "n_other"),
            Column("used", "mean_initial", ".3f"),
            Column("used, other", "mean_other", ".3f"),
            Column("U", "u", ".4g"),
            Column("p", "u_p", ".2g"),
            Column("rank-biserial", "rank_biserial", "+.3f"),
            Column("Welch's t", "t", ".2f"),
            Column("p", "t_p", ".2g"),
            Column("Cohen's d", "cohens_d", "+.2f"),
        ],
    )


def decoder_text(summary: dict[str, Any]) -> str:
    return (
        f"decoder gates of {summary['tokens']} tokens: share of layers in which a module runs, tokens that begin a "
        "word against all others (Table 2)\n\n" + str(token_test_table(summary["tests"]))
    )
