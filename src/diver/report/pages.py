"""Pages of the report that are no single table: one HTML document each, which loads nothing from elsewhere."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Section:
    """A heading with a paragraph, a table or preformatted text below it; what is empty is left out."""

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    code: str = ""


def document(title: str, body: str, style: str = "") -> str:
    """An HTML document with a heading, a body that is HTML already, and rules of CSS beside those of all documents."""
    return _DOCUMENT.format(title=html.escape(title), body=body, style=style)


def page(title: str, sections: Sequence[Section]) -> str:
    """The document; links at its top lead to its sections, of which it must have one or more."""
    links = " · ".join(f'<a href="#s{i}">{html.escape(one.title)}</a>' for i, one in enumerate(sections))
    body = "\n".join(_section(one, i) for i, one in enumerate(sections))
    return document(title, f"<p>{links}</p>\n{body}" if len(sections) > 1 else body, _STYLE)


def _section(section: Section, number: int) -> str:
    parts = [f'<h2 id="s{number}">{html.escape(section.title)}</h2>']
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    if section.table is not None:
        head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in section.table.columns)
        rows = "\n".join(
            "<tr>" + "".join(f"<td>{html.escape(str(value))}</td>" for value in row) + "</tr>"
            for row in section.table.itertuples(index=False)
        )
        parts.append(
            f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
        )
    if section.code:
        parts.append(f"<pre>{html.escape(section.code)}</pre>")
    return "\n".join(parts)


_STYLE = """h2 { font-size: 1.05rem; margin-top: 2rem; }
p { max-width: 60rem; }
th, td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
th, td:not(:first-child):not(:last-child) { overflow-wrap: normal; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .85rem; }"""

_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 1.5rem; }}
h1 {{ font-size: 1.25rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .7rem; }}
thead th {{ border-bottom: 2px solid #222; }}
tbody tr:last-child > * {{ border-bottom: 2px solid #222; }}
tbody tr:hover > * {{ background: #f0f4f8; }}
{style}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
