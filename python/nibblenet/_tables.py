"""Tables for terminals and notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence

Row = Sequence[str]


def text(header: Row, rows: Sequence[Row]) -> str:
    """Columns in equal width: the first to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))).rstrip()
                     for line in lines)


def as_html(header: Row, rows: Sequence[Row], caption: str = "") -> str:
    """An HTML table; every cell is escaped."""
    def line(cells: Row, tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"


def count(value: float) -> str:
    """"22,210,912"."""
    return f"{round(value):,}"
