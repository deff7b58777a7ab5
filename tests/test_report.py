"""The report: tables, files, and the page in a real browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from localgp.cli import CONF_DIR
from localgp.errors import ConfigError
from localgp.report.build import build_report
from localgp.report.gpu import NOT_MEASURED
from localgp.report.markdown import readme_section, replace_between_markers
from localgp.report.pareto import Point, front, pareto_figure, points
from localgp.report.runs import collect, group
from localgp.report.scores import side_by_side
from localgp.report.speed import read_benchmarks
from localgp.report.style import run_style
from localgp.settings import SCHEMAS, check
from localgp.tables import NOT_RUN, every_key
from tests.analysis_helpers import shared_place
from tests.chromium import NAMES, Chromium, find_chromium


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return shared_place(tmp_path_factory)


README = "# Mine\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n"


@pytest.fixture(scope="module")
def page(place):
    """The report of all runs and a benchmark, with RESULTS.md and README.md updated beside ``exp``."""
    (place.path / "exp/bench").mkdir(exist_ok=True)
    row = {
        "backbone": "owsm_v3.1_base",
        "seconds_of_audio": [5.0, 10.0],
        "time_ratio_vs_dense": 0.71,
        "peak_mib": None,
    }
    bench = {"bench": "encoder", "machine": "a <b>machine</b>", "rows": [row]}
    (place.path / "exp/bench/encoder.json").write_text(json.dumps(bench))
    rows = [timed_row("row01", 2.0, 1.0, [1.0, 1.0]), timed_row("row05", 1.1, 0.8, [0.7, 0.9])]
    runs = {"bench": "runs", "machine": {"cpu": "A"}, "commit": "feed", "rows": rows, "goals": []}
    (place.path / "exp/bench/runs.json").write_text(json.dumps(runs))
    readme, results = place.path / "README.md", place.path / "RESULTS.md"
    readme.write_text(README)
    results.write_text("old\n<!-- gpu:begin -->\n\nof a card\n\n<!-- gpu:end -->")  # which is kept
    path, _, _ = build_report(place.config(f"++report.readme={readme}", f"++report.results={results}"))
    return path


def _groups(place):
    (groups,) = group(collect(place.path / "exp")).values()
    return groups


def test_groups_are_in_the_papers_order(place):
    assert [g.name for g in _groups(place)] == ["row01", "row05", "row05-target0.5", "control_random"]
    assert [run.seed for run in _groups(place)[1].runs] == [1, 2]


def test_side_by_side_keeps_paper_and_ours_apart(place):
    table = side_by_side(_groups(place))
    assert [title for title, _ in table.spans] == ["", "paper", "ours"]
    assert all(len(row) == len(table.header) == 17 for row in table.rows)
    rows = {row[0]: row for row in table.rows}
    assert list(rows)[:6] == ["row01", "row02", "row03", "row04", "row05", "row05-target0.5"]
    assert list(rows)[-2:] == ["row10", "control_random"]
    assert rows["row05"][4:7] == ["13.0", "12.0", "541.6"]
    assert rows["row05"][9] == "-4.7 %"  # 541.6 of 568.5
    assert rows["row05"][10] == "2"  # seeds
    assert rows["row05"][13] == "0.890 ± 0.014"
    assert rows["row05"][16] == "-11.0 %"
    assert rows["row02"][10] == NOT_RUN
    assert rows["control_random"][1:5] == ["encoder", "random", "-", "-"]
    assert "paper: WER" in table.markdown()


def test_table_escapes_what_it_is_given():
    html = every_key([{"run": "a<b", "<i>": "1 & 2"}]).html()
    assert "<i>" not in html
    assert "a&lt;b" in html
    assert "1 &amp; 2" in html


def test_pareto_points_and_front(place):
    groups = _groups(place)
    found = {p.name: p for p in points(groups, "gflops", "wer", {})}
    assert found["row05"].x == pytest.approx(0.89)
    assert found["row05"].x_range == pytest.approx((0.8759, 0.9041), abs=1e-4)
    assert found["row05-target0.5"].x == pytest.approx(0.7)
    assert (found["row05-target0.5"].family, found["row05-target0.5"].label) == ("row05", "0.5")
    a, b, c = (Point(n, x, y, (x, x), 0) for n, x, y in (("a", 1, 9.0), ("b", 2, 9.5), ("c", 3, 8.0)))
    assert front([c, a, b], higher_is_better=False) == [a, c]
    assert front([c, a, b], higher_is_better=True) == [a, b]


def test_seconds_are_those_of_paired_runs(place):
    """The evaluation's own are never drawn, and a point moves with its ratio to row01, not with the machine's mood."""
    groups = _groups(place)
    assert points(groups, "encoder", "wer", {}) == points(groups, "total", "wer", {}) == []
    assert pareto_figure(groups, "encoder", "wer", {}) is None
    timed = {
        "row01": timed_row("row01", 2.0, 1.0, [1.0, 1.0]),
        "row05": timed_row("row05", 1.1, 0.8, [0.7, 0.9]),
    }
    found = {p.name: p for p in points(groups, "encoder", "wer", timed)}
    assert set(found) == {"row01", "row05"}
    assert found["row05"].x == pytest.approx(1.6)
    assert found["row05"].x_range == pytest.approx((1.4, 1.8))
    alone = points(groups, "encoder", "wer", {"row05": timed["row05"] | {"time_ratio_vs_dense": None}})
    assert [p.x for p in alone] == [1.1]
    total = {p.name: p for p in points(groups, "total", "bleu", timed)}
    assert total["row05"].x == pytest.approx(5.5)


def test_points_of_a_sweep_are_joined_and_variants_are_not():
    lines = [
        Point(n, 1, 1, (1, 1), 0).line
        for n in ("row06", "row06-target0.5", "row06-cosine", "row06-cosine-target0.5")
    ]
    assert lines == ["row06", "row06", "row06-cosine", "row06-cosine"]


def test_every_experiment_has_a_look_of_its_own():
    names = sorted(path.stem for path in (CONF_DIR / "conf").glob("*.yaml"))
    looks = [tuple(sorted(run_style(name).items())) for name in names]
    assert len(set(looks)) == len(names) >= 16
    shapes = [
        (run_style(n)["marker"], run_style(n)["markerfacecolor"] == "none", run_style(n)["color"])
        for n in names
    ]
    assert len(set(shapes)) == len(names)
    assert run_style("mine") == run_style("mine")
    assert run_style("mine")["marker"] not in {run_style(name)["marker"] for name in names}


def timed_row(name, encoder, ratio, spread):
    return {
        "run": name, "seed": 1, "corpus": "mini", "backbone": "mini", "utterances": 4, "audio_seconds": 16.0,
        "encoder_seconds": encoder, "decoder_seconds": 4 * encoder, "features_seconds": 0.1, "contexts_seconds": 0.0,
        "total_seconds": 5 * encoder, "total_time_ratio_vs_dense": ratio, "time_ratio_vs_dense": ratio,
        "time_ratio_spread": spread, "decoder_time_ratio_vs_dense": 1.25, "decoder_time_ratio_spread": [1.2, 1.3],
        "flop_ratio": 0.91, "decoder_flop_ratio": 1.0, "skipped": 0.3, "decoder_skipped": 0.0, "tokens": 99,
    }  # fmt: skip


def test_report_replaces_between_markers_only(place, page):
    readme = place.path / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# Mine\n<!-- results:begin -->\n\nmini, whole test set, 15 utterances")
    assert text.endswith("<!-- results:end -->\nafter\n")
    assert "old" not in text
    assert "| row05-target0.5 | local | front | 1 |" in text
    assert "speed" not in text, "a file without markers for it has none"
    replace_between_markers(readme, {"results": readme_section(collect(place.path / "exp")), "speed": "x"})
    assert readme.read_text(encoding="utf-8") == text, "doing it again changes nothing"
    results = (place.path / "RESULTS.md").read_text(encoding="utf-8")
    assert results == (place.path / "exp/RESULTS.md").read_text(encoding="utf-8").replace(
        NOT_MEASURED, "of a card"
    )


@pytest.mark.parametrize(
    "text", ["no markers", "<!-- results:end --> <!-- results:begin -->", README + README]
)
def test_readme_without_one_pair_of_markers_is_left_alone(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ConfigError, match="has not exactly one <!-- results:begin -->"):
        replace_between_markers(readme, {"results": "new"})
    assert readme.read_text() == text
    with pytest.raises(ConfigError, match="which does not exist"):
        replace_between_markers(tmp_path / "other.md", {"results": "new"})


@pytest.mark.parametrize(
    ("override", "message"),
    [("report.utterances=-1", "report.utterances is -1"), ("analyze.format=gif", "valid: svg, pdf, png")],
)
def test_bad_options_are_explained(place, override, message):
    with pytest.raises(ConfigError, match=message):
        check(place.config(override), SCHEMAS["config"])


def test_bad_benchmark_is_named(tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench/decoder.json").write_text('{"bench": "decoder"}')
    with pytest.raises(
        ConfigError, match=r"decoder.json is not what python -m localgp.bench bench=decoder writes"
    ):
        read_benchmarks(tmp_path)


class _Outline(HTMLParser):
    """Tags that must be closed are closed in order; ids and outside references are gathered."""

    VOID = frozenset(("meta", "link", "br", "hr", "img", "input"))

    def __init__(self) -> None:
        super().__init__()
        self.open, self.ids, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [v for k, v in attributes if k in ("src", "href", "xlink:href") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_whole_and_loads_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 15e6
    outline = _Outline()
    outline.feed(text)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith(("#", "data:")) for link in outline.links), outline.links
    anchors = {link[1:] for link in outline.links if link.startswith("#")}
    assert anchors <= set(outline.ids)
    assert text.count("<figure>") == text.count("<figcaption>") >= 4
    assert "1.600" not in text, "seconds in a table are medians"
    for expected in ("0.80 [0.70, 0.90]", "Not timed there: row05-target0.5, control_random."):
        assert expected in text
    assert (
        "Not measured yet: python -m localgp.bench bench=decoder; python -m localgp.bench bench=training; "
        "python scripts/compare_with_espnet.py --utterances 200." in text
    )
    for expected in ("568.5", "0.71", "a &lt;b&gt;machine", "0123456789abcdef", "pruning:"):
        assert expected in text
    assert "Table 1, side by side" not in text, (
        "another corpus than Europarl-ST's is not set beside the paper"
    )
    assert "`" not in re.sub(r"<(style|script)[^>]*>.*?</\1>|<pre>.*?</pre>", "", text, flags=re.DOTALL)
    start = text[: text.index("<h2")]
    assert "has the lowest WER; against the dense row01 it: skips" in start
    assert re.search(r"WER [\d.]+ ± [\d.]+ for [\d.]+ ± [\d.]+ \([+-][\d.]+ \[", start), "with an interval"
    assert start.count("<figure>") == 1
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", text)
    assert all(len(caption) > 80 for caption in captions)


def test_viewer_data_are_the_runs(place, page):
    text = page.read_text(encoding="utf-8")
    (raw,) = re.findall(r'id="viewer-data">(.*?)</script>', text, flags=re.DOTALL)
    data = json.loads(raw)
    (only,) = data["sets"]
    assert len(only["utterances"]) == 6
    assert {u["language"] for u in only["utterances"]} == {"de", "fr", "it"}
    assert len(only["runs"]) == 6
    dense = next(r for r in only["runs"] if r["label"] == "row01, seed 1")
    assert dense["gates"] is None
    assert dense["masks"] == [None] * 6
    first = only["utterances"][0]
    spoken = (
        place.path / "exp/mini/mini/row01/seed1/hyp" / f"test.{first['language']}-{first['language']}.txt"
    ).read_text()
    assert f"{first['id']} {dense['hypothesis'][0][first['language']]}" in spoken.splitlines()


CHROMIUM = find_chromium()


@pytest.mark.skipif(
    CHROMIUM is None, reason=f"no Chromium: none of {', '.join(NAMES)} on PATH, CHROMIUM not set"
)
def test_page_in_chromium(page, tmp_path):
    with Chromium(CHROMIUM, tmp_path / "profile") as browser:
        for width in (1280, 400):
            for dark in (False, True):
                browser.show(page, width=width, dark=dark)
                assert browser.run("innerWidth") == width
                # nothing but boxes that scroll themselves may be wider than the window
                assert browser.run("document.documentElement.scrollWidth") <= width
                smallest = (
                    "Math.min(...[...document.querySelectorAll('p, td, th, figcaption, label')].filter("
                )
                smallest += "e => e.textContent.trim()).map(e => parseFloat(getComputedStyle(e).fontSize)))"
                assert browser.run(smallest) >= 12
                ground, ink = browser.run(
                    "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
                )
                assert _contrast(ground, ink) > 7
                assert (_luminance(ground) < 0.1) == dark
                assert browser.screenshot(tmp_path / "page.png").stat().st_size > 10_000
        tried = browser.run("viewer.selftest()")
        assert tried["errors"] == []
        seen = tried["seen"]
        assert len(seen) == 6 * 6
        by_run = [entry for entry in seen if entry["run"] == "row05, seed 1"]
        assert len({entry["picture"] for entry in by_run}) == 6, "every utterance has a picture of its own"
        assert len({entry["text"] for entry in by_run}) == 6
        same = [entry["picture"] for entry in seen if entry["utterance"] == seen[0]["utterance"]]
        assert len(set(same)) == 5, "the two dense seeds look alike, every gated run differs"
        assert {entry["canvases"] for entry in by_run} == {5}  # spectrogram, true speech, three modules
        assert all(entry["source"] == "data:audio/mp4;base64," for entry in seen)
        heard = [entry for entry in seen if entry["duration"] is not None]
        assert len(heard) == 6
        if all(entry["duration"] > 0 for entry in heard):  # a Chromium built without AAC cannot say
            assert all(abs(entry["duration"] - entry["seconds"]) < 0.15 for entry in heard)
        hovered = browser.run(
            "(() => { const c = document.querySelectorAll('.stack canvas')[3], b = c.getBoundingClientRect();"
            "c.dispatchEvent(new PointerEvent('pointermove', {bubbles: true, clientX: b.left + b.width / 2,"
            "clientY: b.top + b.height - 2})); return document.querySelector('[data-part=readout]').textContent; })()"
        )
        assert re.search(r"^\d\.\d\d s · attention, layer 1: (runs|skipped)", hovered), hovered
        assert browser.console == []


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2) of ``rgb(r, g, b)``."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)
