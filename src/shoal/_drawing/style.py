"""The style sheet of SVG drawings, for light and dark surroundings.

A page with a style sheet of its own may set the variables, or leave the drawing's sheet out.
"""

from __future__ import annotations

LIGHT = """
--shoal-paper: #ffffff; --shoal-ink: #1f2933; --shoal-muted: #52606d; --shoal-line: #7b8794;
--shoal-action: #f5f7fa; --shoal-graph: #fafbfc; --shoal-many: #eef5ff; --shoal-race: #fff6e6;
--shoal-many-line: #3e7bfa; --shoal-race-line: #c27803;
--shoal-done: #1a7f37; --shoal-failed: #cf222e; --shoal-running: #0969da; --shoal-waiting: #9a6700;
--shoal-other: #8c959f;
"""
DARK = """
--shoal-paper: #0f1720; --shoal-ink: #e4e9ee; --shoal-muted: #9fb0c0; --shoal-line: #7f8fa0;
--shoal-action: #1b2632; --shoal-graph: #141d27; --shoal-many: #13233a; --shoal-race: #2b2312;
--shoal-many-line: #6ea3ff; --shoal-race-line: #e0a63a;
--shoal-done: #3fb950; --shoal-failed: #ff7b72; --shoal-running: #58a6ff; --shoal-waiting: #d4a72c;
--shoal-other: #8b98a5;
"""
RULES = """
.shoal-drawing .paper { fill: var(--shoal-paper); }
.shoal-drawing text { fill: var(--shoal-ink); dominant-baseline: central;
  font: 11px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
.shoal-drawing .name { font: 600 13px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
.shoal-drawing .kind, .shoal-drawing .label, .shoal-drawing .counts { fill: var(--shoal-muted); }
.shoal-drawing .edge-label { text-anchor: middle; }
.shoal-drawing .edge-label.beside { text-anchor: start; }
.shoal-drawing .box { stroke: var(--shoal-line); stroke-width: 1; fill: var(--shoal-action); }
.shoal-drawing .graph > .box { fill: var(--shoal-graph); }
.shoal-drawing .fan-out > .box { fill: var(--shoal-many); stroke: var(--shoal-many-line); }
.shoal-drawing .race > .box { fill: var(--shoal-race); stroke: var(--shoal-race-line); }
.shoal-drawing .again > .box { stroke-dasharray: 2 3; }
.shoal-drawing .chosen > .box { stroke-dasharray: 6 4; }
.shoal-drawing .line { fill: none; stroke: var(--shoal-line); stroke-width: 1.3; }
.shoal-drawing .arrow, .shoal-drawing .mark { fill: var(--shoal-line); }
.shoal-drawing .ring { fill: none; stroke: var(--shoal-line); stroke-width: 1.3; }
.shoal-drawing .bar { fill: var(--shoal-other); }
.shoal-drawing .bar.done, .shoal-drawing .bar.succeeded { fill: var(--shoal-done); }
.shoal-drawing .bar.failed { fill: var(--shoal-failed); }
.shoal-drawing .bar.running { fill: var(--shoal-running); }
.shoal-drawing .bar.waiting, .shoal-drawing .bar.halted { fill: var(--shoal-waiting); }
"""


def style() -> str:
    """Return the style sheet."""
    light, dark = (" ".join(colours.split()) for colours in (LIGHT, DARK))
    return (
        f".shoal-drawing {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ .shoal-drawing {{ {dark} }} }}\n"
        f"{RULES.strip()}"
    )
