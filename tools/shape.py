"""Print the shape of Python sources: `python tools/shape.py src/shoal [DIRECTORY...]`.

A function's length excludes its docstring. A line of code holds something other than a comment or
a docstring. Nesting counts the blocks around a statement within its function, including inner
functions; an `elif` stands beside its `if`. Core lines exclude the public subpackages, which are
the directories whose names don't start with an underscore. A class counts the attributes and
methods that it inherits from classes of the same directory, because a large class that is split
into mixins is as large as before. The figures inform; they are no limits.
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from math import ceil
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Loop = ast.For | ast.AsyncFor | ast.While
Block = Function | Loop | ast.If | ast.With | ast.AsyncWith | ast.Try | ast.TryStar | ast.Match
Classes = dict[str, list[ast.ClassDef]]
NOT_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE),
    *(tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}


def doc_lines(node: ast.AST) -> set[int]:
    """Return the lines of the node's own docstring."""
    if not isinstance(node, Function | ast.ClassDef | ast.Module) or not ast.get_docstring(node):
        return set()
    return set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))


def length(function: Function) -> int:
    """Count the lines from `def` (without decorators) to the end, without the docstring."""
    return (function.end_lineno or 0) + 1 - function.lineno - len(doc_lines(function))


def nesting(node: ast.AST) -> int:
    """Count the blocks around the innermost statement below the node."""
    beside = node.orelse if isinstance(node, ast.If) and len(node.orelse) == 1 else []
    inside = [c for c in ast.iter_child_nodes(node) if c not in beside]
    depths = [nesting(child) + isinstance(child, Block) for child in inside]
    return max([0, *depths, *map(nesting, beside)])


def line_kinds(source: str) -> tuple[set[int], set[int]]:
    """Return the lines that hold tokens of code or docstrings, and those that hold comments."""
    code, comments = set[int](), set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in NOT_CODE:
            code.update(range(token.start[0], token.end[0] + 1))
    return code, comments


def spread(values: list[tuple[int, str]], *percentiles: int) -> str:
    """Write the percentiles and the largest value with its name: `p50 6, p90 25, max 70 (main)`."""
    ranked = sorted(values)
    figures = [f"p{p} {ranked[ceil(p / 100 * len(ranked)) - 1][0]}" for p in percentiles]
    return ", ".join([*figures, "max {} ({})".format(*ranked[-1])])


def own_attributes(cls: ast.ClassDef) -> Iterator[str]:
    """Yield the names that the body declares, and those that methods assign to `self`."""
    for statement in cls.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id
        elif isinstance(statement, ast.Assign):
            yield from (t.id for t in statement.targets if isinstance(t, ast.Name))
        elif isinstance(statement, Function):
            for node in ast.walk(statement):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    yield from [node.attr] if ast.unparse(node.value) == "self" else []


def base_names(cls: ast.ClassDef) -> list[str]:
    """Return the names of the base classes, without modules and type arguments."""
    bases = [base.value if isinstance(base, ast.Subscript) else base for base in cls.bases]
    return [ast.unparse(base).rpartition(".")[2] for base in bases]


def members(cls: ast.ClassDef, classes: Classes) -> tuple[set[str], set[str]]:
    """Return the names of a class's attributes and methods, including inherited ones."""
    methods = {node.name for node in cls.body if isinstance(node, Function)}
    attributes = {name for name in own_attributes(cls) if not name.startswith("__")}
    for name in base_names(cls):
        # A name that several classes have is ambiguous without reading imports.
        if len(bases := classes.get(name, [])) == 1 and bases[0] is not cls:
            inherited_attributes, inherited_methods = members(bases[0], classes)
            attributes |= inherited_attributes
            methods |= inherited_methods
    return attributes - methods, methods


def largest(nodes: list[ast.AST], count: int) -> str:
    """Write the classes with the most attributes and methods; protocols only describe others."""
    classes: Classes = {}
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            classes.setdefault(node.name, []).append(node)
    sized = [
        (len(attributes), len(methods), cls.name)
        for named in classes.values()
        for cls in named
        if "Protocol" not in base_names(cls)
        for attributes, methods in [members(cls, classes)]
    ]
    sized.sort(key=lambda size: size[0] + size[1], reverse=True)
    return ", ".join("{2} {0}+{1}".format(*size) for size in sized[:count])


def is_core(name: str) -> bool:
    """Whether a file, named relative to the package, is outside of the public subpackages."""
    head, *rest = Path(name).parts
    return not rest or head.startswith("_")


def report(directory: str) -> None:
    """Print the figures of one directory."""
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
    core = [(count, name) for count, name in lines if is_core(name)]
    core_total = sum(count for count, _ in core)
    print(f"  core             {len(core)} files, {core_total:,} lines")
    print(f"  file lines       {spread(lines, 50, 90)}")
    print(f"  functions        {len(functions)}, return annotated {annotated:.0%}")
    print(f"  function lines   {spread([(length(f), f.name) for f in functions], 50, 90, 99)}")
    print(f"  nesting          {spread(depths, 50, 90)}, 4 and more {deep:.1%}")
    print(f"  lines per code   {docs / code:.0%} docstring, {comments / code:.0%} comment")
    print(f"  Any per 1k code  {1000 * anys / code:.1f}")
    print(f"  largest classes  {largest(nodes, 5)} (attributes+methods)")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        report(argument)
