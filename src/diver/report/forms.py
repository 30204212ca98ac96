"""The forms a table is written in: numbers for machines (CSV), the same rows for people (LaTeX, HTML, Markdown)."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from diver.report.pages import document


@dataclass(frozen=True)
class Table:
    """One table in two views of the same rows.

    `data`: raw numbers. `display`: text cells; its first `keys` columns name the row, and a change in the first
    `blocks` of them begins a block. `legend`: the lines under the table.
    """

    title: str
    data: pd.DataFrame
    display: pd.DataFrame
    keys: int
    blocks: int
    legend: tuple[str, ...]


def write_table(table: Table, *paths: str | Path) -> None:
    """Write the table in the format of each path's suffix: .csv, .tex, .html or .md. Raises ValueError for others."""
    for path in map(Path, paths):
        if path.suffix not in WRITERS:
            raise ValueError(f"{path}: a table is written as {', '.join(WRITERS)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(WRITERS[path.suffix](table), encoding="utf-8", newline="\n")


def to_csv(table: Table) -> str:
    """The raw numbers."""
    return str(table.data.to_csv(index=False, lineterminator="\n"))


def to_markdown(table: Table) -> str:
    """A GitHub table, title above, legend below."""

    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(_markdown(value) for value in values) + " |"

    columns = list(table.display.columns)
    rules = [":--" if i < table.keys else "--:" for i in range(len(columns))]
    body = [line(list(row)) for row in table.display.itertuples(index=False)]
    head = [f"**{_markdown(table.title)}**", "", line(columns), "| " + " | ".join(rules) + " |"]
    return "\n".join([*head, *body, "", *(f"- {_markdown(text)}" for text in table.legend)]) + "\n"


def to_tex(table: Table) -> str:
    r"""A `table` environment for the package booktabs; \input it."""
    columns = list(table.display.columns)
    shape = "l" * table.keys + "r" * (len(columns) - table.keys)
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering\small\setlength{\tabcolsep}{4pt}"]
    lines += [rf"\caption{{{_tex(table.title)}}}", rf"\begin{{tabular}}{{{shape}}}", r"\toprule"]
    lines += [" & ".join(map(_tex, columns)) + r" \\", r"\midrule"]
    for row, begins in zip(table.display.itertuples(index=False), _block_starts(table), strict=True):
        lines += [r"\addlinespace"] if begins else []
        lines.append(" & ".join(map(_tex, row)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
    lines += [r"\par ".join(["", *map(_tex, table.legend)]).strip(), r"\end{minipage}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def to_html(table: Table) -> str:
    """A document of its own that loads nothing from elsewhere."""
    columns = "".join(
        f'<th scope="col"{" class=key" if i < table.keys else ""}>{html.escape(name)}</th>'
        for i, name in enumerate(table.display.columns)
    )
    body = []
    for row, begins in zip(table.display.itertuples(index=False), _block_starts(table), strict=True):
        texts = [html.escape(str(value)) for value in row]
        named = "".join(f'<th scope="row">{text}</th>' for text in texts[: table.keys])
        rest = "".join(f"<td>{text}</td>" for text in texts[table.keys :])
        body.append(f"<tr{' class=block' if begins else ''}>{named}{rest}</tr>")
    legend = "".join(f"<li>{html.escape(text)}</li>" for text in table.legend)
    parts = [f"<thead><tr>{columns}</tr></thead>", "<tbody>", *body, "</tbody>"]
    wide = "\n".join(['<div class="wide">', "<table>", *parts, "</table>", "</div>", f"<ul>{legend}</ul>"])
    return document(table.title, wide, _STYLE)


WRITERS: dict[str, Callable[[Table], str]] = {".csv": to_csv, ".tex": to_tex, ".html": to_html, ".md": to_markdown}


def _block_starts(table: Table) -> list[bool]:
    """For each row whether it begins a block, the first row excepted."""
    names = [tuple(row[: table.blocks]) for row in table.display.itertuples(index=False)]
    return [i > 0 and name != names[i - 1] for i, name in enumerate(names)]


_TEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "Δ": r"$\Delta$",
    "†": r"\dag{}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in str(text))


def _markdown(text: str) -> str:
    escaped = str(text)
    for character in "\\|*_~`<":
        escaped = escaped.replace(character, f"\\{character}")
    return escaped


_STYLE = """th, td { text-align: right; white-space: nowrap; }
thead th { vertical-align: bottom; }
tr.block > * { border-top: 1px solid #bbb; }
tbody th { font-weight: normal; }
tbody th, th.key { text-align: left; }
ul { color: #444; font-size: .9rem; padding-left: 1.2rem; max-width: 60rem; }"""
