"""Tables of results: rows, and columns that say what to show of each; for a terminal, Markdown or a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

NOT_RUN = "not run"


class Column(NamedTuple):
    """What a table shows of every row.

    Attributes:
        heading: Over the column.
        value: A key of the row, keys (``row[key][key]...``), or what finds the value in the row. What a mapping lacks,
            None and NaN are shown as a dash.
        form: Python's format (``.1%``), or what writes a value. With ``>`` a terminal has a first column at the right.
        span: Title over this column and those beside it with the same one.
    """

    heading: str
    value: str | int | tuple[str | int, ...] | Callable[[Any], Any]
    form: str | Callable[[Any], str] = ""
    span: str = ""

    def cell(self, row: Any) -> str:
        if callable(self.value):
            value = self.value(row)
        else:
            value = row
            for key in self.value if isinstance(self.value, tuple) else (self.value,):
                value = value[key] if not isinstance(value, Mapping) else value.get(key)
                if value is None:
                    break
        if value is None or value != value:
            return "-"
        return self.form(value) if callable(self.form) else format(value, self.form)


@dataclass(frozen=True)
class Table:
    """What `render` made: its ``str`` is the terminal's.

    Attributes:
        columns: The first is a row's name, the others are figures.
        rows: Cells, as many as there are columns.
    """

    columns: Sequence[Column]
    rows: list[list[str]]

    @property
    def header(self) -> list[str]:
        return [column.heading for column in self.columns]

    @property
    def spans(self) -> list[tuple[str, int]]:
        """Titles over neighbouring columns with how many they cover, the empty one too."""
        return [(title, len(list(same))) for title, same in groupby(c.span for c in self.columns)]

    def __str__(self) -> str:
        """Columns aligned, the first one to the left, the others to the right."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        align = [">" if column.form == ">" or i else "<" for i, column in enumerate(self.columns)]
        shown = [
            "  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(line, align, widths, strict=True))
            for line in lines
        ]
        return "\n".join(line.rstrip() for line in shown)

    def markdown(self) -> str:
        """GitHub's table; a span's title goes before its columns' headings."""
        names = [f"{c.span}: {c.heading}" if c.span else c.heading for c in self.columns]
        lines = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in self.rows])

    def html(self) -> str:
        """In a box that scrolls sideways; the n-th span's columns have the class ``span<n>``."""
        classes, titles = [], ""
        for n, (title, count) in enumerate(self.spans):
            shown = f' class="span{n}"' if title else ""
            classes += [shown] * count
            titles += f'<th colspan="{count}"{shown} scope="colgroup">{escape(title)}</th>'
        head = f"<tr>{titles}</tr>" if any(column.span for column in self.columns) else ""
        names = [f'<th{c} scope="col">{escape(h)}</th>' for c, h in zip(classes, self.header, strict=True)]
        body = []
        for first, *row in self.rows:
            cells = [f"<td{c}>{_page_cell(cell)}</td>" for c, cell in zip(classes[1:], row, strict=True)]
            body.append(f'<tr><th{classes[0]} scope="row">{escape(first)}</th>{"".join(cells)}</tr>')
        return (
            f'<div class="scroll" tabindex="0"><table><thead>{head}<tr>{"".join(names)}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )


def render(rows: Iterable[Any], columns: Iterable[Column]) -> Table:
    """A table of any rows.

    Examples:
        >>> columns = [Column("run", "name"), Column("kept", "share", ".1%"), Column("twice", lambda r: 2 * r["n"])]
        >>> table = render([{"name": "row01", "n": 3}, {"name": "row05", "n": 4, "share": 0.25}], columns)
        >>> print(table)
        run     kept  twice
        row01      -      6
        row05  25.0%      8
        >>> print(table.markdown())
        | run | kept | twice |
        |---|---:|---:|
        | row01 | - | 6 |
        | row05 | 25.0% | 8 |
    """
    columns = list(columns)
    return Table(columns, [[column.cell(row) for column in columns] for row in rows])


def every_key(rows: Sequence[dict[str, Any]], form: str | Callable[[Any], str] = "") -> Table:
    """A column for every key that any row has."""
    return render(rows, [Column(key, key, form) for key in dict.fromkeys(key for row in rows for key in row)])


def percent(value: float, digits: int = 0) -> str:
    return f"{100 * value:.{digits}f} %"


def in_percent(digits: int) -> Callable[[float], str]:
    """A form for a column whose heading has the sign."""
    return lambda value: f"{100 * value:.{digits}f}"


def _page_cell(cell: str) -> str:
    return f'<span class="missing">{cell}</span>' if cell == NOT_RUN else escape(cell)
