"""Prints the shape of Python sources: `python tools/shape.py src/shoal [DIRECTORY...]`.

A function's length leaves out its docstring. A line of code holds something other than a comment
or a docstring. Nesting counts the blocks around a statement within its function, inner functions
among them; an `elif` stands beside its `if`. The figures inform; they are no limits.
"""

import ast
import io
import sys
import tokenize
from math import ceil
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Loop = ast.For | ast.AsyncFor | ast.While
Block = Function | Loop | ast.If | ast.With | ast.AsyncWith | ast.Try | ast.TryStar | ast.Match
NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def doc_lines(node: ast.AST) -> set[int]:
    """The lines of the node's own docstring."""
    if not isinstance(node, Function | ast.ClassDef | ast.Module) or not ast.get_docstring(node):
        return set()
    return set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))


def length(function: Function) -> int:
    """The lines from `def` (decorators left out) to the end, without the docstring."""
    return (function.end_lineno or 0) + 1 - function.lineno - len(doc_lines(function))


def nesting(node: ast.AST) -> int:
    """How many blocks stand around the innermost statement below the node."""
    beside = node.orelse if isinstance(node, ast.If) and len(node.orelse) == 1 else []
    inside = [c for c in ast.iter_child_nodes(node) if c not in beside]
    depths = [nesting(child) + isinstance(child, Block) for child in inside]
    return max([0, *depths, *map(nesting, beside)])


def line_kinds(source: str) -> tuple[set[int], set[int]]:
    """The lines that hold tokens of code or docstrings, and those that hold comments."""
    code, comments = set[int](), set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return code, comments


def spread(values: list[tuple[int, str]], *percentiles: int) -> str:
    """The percentiles, then the largest value with its name: `p50 6, p90 25, max 70 (main)`."""
    ranked = sorted(values)
    figures = [f"p{p} {ranked[ceil(p / 100 * len(ranked)) - 1][0]}" for p in percentiles]
    return ", ".join([*figures, "max {} ({})".format(*ranked[-1])])


def report(directory: str) -> None:
    """Prints the figures of one directory."""
    sources = {str(p.relative_to(directory)): p.read_text() for p in Path(directory).rglob("*.py")}
    nodes = [node for source in sources.values() for node in ast.walk(ast.parse(source))]
    functions = [node for node in nodes if isinstance(node, Function)]
    if not functions:
        print(f"{directory}: no function in {len(sources)} files")
        return

    kinds = [line_kinds(source) for source in sources.values()]
    docs = sum(len(doc_lines(node)) for node in nodes)
    code = sum(len(code) for code, _ in kinds) - docs
    comments = sum(len(comments) for _, comments in kinds)
    lines = [(source.count("\n"), name) for name, source in sources.items()]
    depths = [(nesting(function), function.name) for function in functions]
    deep = sum(depth >= 4 for depth, _ in depths) / len(depths)
    annotated = sum(function.returns is not None for function in functions) / len(functions)
    anys = sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)
    total = sum(count for count, _ in lines)

    print(f"{directory}: {len(sources)} files, {total:,} lines, {code:,} of code")
    print(f"  file lines       {spread(lines, 50, 90)}")
    print(f"  functions        {len(functions)}, return annotated {annotated:.0%}")
    print(f"  function lines   {spread([(length(f), f.name) for f in functions], 50, 90, 99)}")
    print(f"  nesting          {spread(depths, 50, 90)}, 4 and more {deep:.1%}")
    print(f"  lines per code   {docs / code:.0%} docstring, {comments / code:.0%} comment")
    print(f"  Any per 1k code  {1000 * anys / code:.1f}")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        report(argument)
