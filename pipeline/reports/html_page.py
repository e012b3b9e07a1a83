"""One HTML file that needs nothing else: no address is loaded, whatever it shows is inside."""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

PARTS = Path(__file__).with_name("page")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(title: str, content: Sequence[str], data: Any = None) -> str:
    """The whole file. content: HTML; data: what page.js draws, plain JSON values."""
    script = ""
    if data is not None:
        text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")  # no word ends the element
        script = f'<script type="application/json" id="data">{text}</script>\n<script>{(PARTS / "page.js").read_text()}</script>'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{(PARTS / 'page.css').read_text()}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(content)
        + f"\n</main>\n{script}\n</body>\n</html>\n"
    )


def card(heading: str, body: str, note: str = "", *, wide: bool = False, extra: str = "") -> str:
    classes = "card" + (" wide" if wide else "") + (f" {extra}" if extra else "")
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    head = f"<h2>{escape(heading)}</h2>" if heading else ""
    return f'<section class="{classes}">{head}{said}{body}</section>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Figures in large type, each with what it is."""
    return '<div class="facts">' + "".join(_fact(*pair) for pair in pairs) + "</div>"


def rows(head: Sequence[str], body: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """A table of texts; numeric: columns that end alike."""
    kinds = [' class="n"' if is_number else "" for is_number in numeric]
    top = "".join(f"<th{kind}>{escape(cell)}</th>" for cell, kind in zip(head, kinds, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>" for row in body
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _fact(figure: str, what: str) -> str:
    return f'<div class="fact"><b>{escape(figure)}</b><span>{escape(what)}</span></div>'
