"""One table for terminal, Markdown and page."""

from __future__ import annotations

import pytest

from localgp.tables import NOT_RUN, Column, every_key, in_percent, percent, render


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ({}, "a"),
        ({"a": None}, "a"),
        ({"a": float("nan")}, "a"),
        ({"a": {}}, ("a", "b")),
        ({"a": None}, ("a", "b")),
        ((1, None), (1, "b")),
        ((), lambda row: None),
    ],
)
def test_what_is_missing_is_a_dash(row, value):
    (cells,) = render([row], [Column("a", value, ".1%")]).rows
    assert cells == ["-"]


def test_values_are_keys_paths_and_functions():
    columns = [
        Column("a", (0, "x"), percent),
        Column("b", 1, in_percent(2)),
        Column("c", len),
        Column("d", (0, "y")),
    ]
    (cells,) = render([({"x": 0.25, "y": False}, 0.123456)], columns).rows
    assert cells == ["25 %", "12.35", "2", "False"]


def test_a_terminal_has_names_at_the_left_unless_told():
    rows = [{"a": "long name", "b": 1}, {"a": "x", "b": 100}]
    assert str(every_key(rows)).split("\n") == ["a            b", "long name    1", "x          100"]
    right = render(rows, [Column("a", "a", ">"), Column("b", "b")])
    assert str(right).split("\n") == ["        a    b", "long name    1", "        x  100"]
    assert str(every_key([])) == ""


def test_titles_over_columns():
    columns = [
        Column("run", "n"),
        Column("de", "n", span="WER"),
        Column("fr", "n", span="WER"),
        Column("s", "n"),
    ]
    table = render([{"n": NOT_RUN}], columns)
    assert table.spans == [("", 1), ("WER", 2), ("", 1)]
    assert table.markdown().startswith("| run | WER: de | WER: fr | s |\n|---|---:|---:|---:|\n")
    page = table.html()
    assert '<th colspan="2" class="span1" scope="colgroup">WER</th>' in page
    assert page.count(' class="span1"') == 1 + 2 + 2
    assert '<td><span class="missing">not run</span></td>' in page
    assert "colgroup" not in every_key([{"n": 1}]).html()
