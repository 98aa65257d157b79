"""Draws ratios as bars, in an SVG that needs no library."""

from __future__ import annotations

from html import escape
from typing import Any

from benchmarks.compare.workloads import WORKLOADS

WIDTH, LEFT, RIGHT, BAR, GAP, HEAD = 860, 250, 90, 15, 14, 22
LONGEST = 30
"""Times as long as the shortest bar; longer ones are cut off, and marked."""
STYLE = """text { font: 12px system-ui, sans-serif; fill: #1f2933 }
.head { font-weight: 600 } .note { fill: #616e7c; font-size: 11px }
.bar { fill: #9fb3c8 } .ours { fill: #2680c2 }
@media (prefers-color-scheme: dark) { text { fill: #e4e7eb } .note { fill: #9aa5b1 }
.bar { fill: #52667a } .ours { fill: #40a0e0 } }"""


def plot(tables: dict[str, list[dict[str, Any]]], note: str) -> str:
    """Return a picture of the processor time per item of each contender, a group per table."""
    body: list[str] = []
    y = 10.0
    for cell, rows in tables.items():
        workload, items, limit, backend = cell.rsplit(" ", 3)
        found = WORKLOADS[workload]
        size = f"{int(items):,}" + (f", {limit} in flight" if int(limit) > 1 else "")
        title = f"{found.title}: {size}, {backend}"
        body.append(f'<text class="head" x="10" y="{y + 12}">{escape(title)}</text>')
        y += HEAD
        # One very slow contender must not hide the differences of the others.
        most = min(max(row["cpu"] for row in rows), LONGEST * min(row["cpu"] for row in rows))
        for row in rows:
            value = row["cpu"]
            width = max(1.0, (WIDTH - LEFT - RIGHT) * min(1.0, value / most))
            cut = "» " if value > most else ""
            kind = "ours" if row["name"].startswith("shoal") else "bar"
            body.append(f'<text x="20" y="{y + 12}">{escape(row["name"])}</text>')
            body.append(
                f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}">'
                f"<title>{value:.1f} us per {found.unit}</title></rect>"
            )
            body.append(
                f'<text x="{LEFT + width + 6:.1f}" y="{y + 12}">{cut}{_shown(value)}</text>'
            )
            y += BAR + 3
        y += GAP
    for line in _lines(note):
        body.append(f'<text class="note" x="10" y="{y + 10}">{escape(line)}</text>')
        y += 15
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 8:.0f}" role="img">\n'
        f"<title>Processor time per item, beside other programs</title>\n<style>{STYLE}</style>\n"
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _shown(micros: float) -> str:
    return f"{micros / 1000:.2f} ms" if micros >= 1000 else f"{micros:.1f} µs"


def _lines(text: str, width: int = 120) -> list[str]:
    lines, line = list[str](), ""
    for word in text.split(", "):
        if len(line) + len(word) > width:
            lines.append(line.rstrip(", ") + ",")
            line = ""
        line += word + ", "
    return [*lines, line.rstrip(", ")]
