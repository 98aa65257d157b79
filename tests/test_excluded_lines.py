"""Lines that the measured coverage leaves out: each has a reason."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_line_is_excluded_without_a_reason():
    for path in (ROOT / "src").rglob("*.py"):
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
            if "pragma: no" not in line:
                continue
            where = f"{path.relative_to(ROOT)}:{number}"
            reason = re.search(r"# pragma: no (cover|branch) # \w.{9,}$", line)
            assert reason, f"{where}: write the reason behind it: `# pragma: no cover # REASON`"


def test_no_pattern_excludes_lines_without_a_reason():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    patterns = text[text.index("exclude_also = [") :].partition("\n]")[0].splitlines()[1:]
    assert patterns
    for line in patterns:
        assert re.search(r"',  # \w.{5,}$", line), f"write the reason behind it: {line.strip()}"
