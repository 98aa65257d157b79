"""Small defects at any place of a module: what a slip of the keyboard or of the mind would make.

A defect replaces one piece of the text, so that everything else stays as it is.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "+"), ast.Div: ("/", "*"),
}  # fmt: skip
FOR_READERS = frozenset({"note", "brief", "TypeVar", "warning", "error", "info", "exception"})
"""Functions whose results are read by people: a defect in them changes a text and nothing else."""


@dataclass(frozen=True, slots=True)
class Defect:
    """A piece of a module's text, and what stands there instead."""

    module: str
    """The file, below ``src/shoal``."""
    function: str
    """The function or class that it is in."""
    line: int
    last: int
    """The last line of the statement that it is in."""
    start: int
    end: int
    before: str
    after: str
    number: int = 1
    """Which one it is of those that are alike in the function."""

    @property
    def key(self) -> str:
        """What tells it from others, whatever stands above its function."""
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        number = "" if self.number == 1 else f" ({self.number})"
        return f"{self.module}: {self.function}: `{before}` -> `{after}`{number}"

    def apply(self, text: str) -> str:
        data = text.encode()
        return (data[: self.start] + self.after.encode() + data[self.end :]).decode()


def defects(module: str, text: str) -> Iterator[Defect]:
    """Yield all small defects of a module, in the order of its text."""
    alike = Counter[str]()
    for found in sorted(_Finder(module, text).found, key=lambda one: (one.start, -one.end)):
        alike[found.key] += 1
        yield replace(found, number=alike[found.key])


class _Finder(ast.NodeVisitor):
    def __init__(self, module: str, text: str) -> None:
        self._module = module
        self._data = text.encode()
        self._starts = [0]
        for line in self._data.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._within: list[str] = []
        self._is_called = False
        self._statement: ast.stmt | None = None
        self.found: list[Defect] = []
        self.visit(ast.parse(text))

    def _place(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._place(node.lineno, node.col_offset)
        return start, self._place(node.end_lineno, node.end_col_offset)

    def _add(self, start: int, end: int, after: str, statement: ast.stmt | None = None) -> None:
        statement = statement or self._statement
        if statement is None or not self._is_called:
            return  # what a module or class does when it is imported belongs to no test
        before = self._data[start:end].decode()
        line = self._data.count(b"\n", 0, start) + 1
        last = statement.end_lineno or line
        where = ".".join(self._within)
        found = Defect(self._module, where, line, last, start, end, before, after)
        self.found.append(found)

    def _between(self, left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        """Replace an operator that stands between two operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        at = self._data.find(old.encode(), start, end)
        if at >= 0:
            self._add(at, at + len(old.encode()), new)

    # -- where it stands ------------------------------------------------------------------------

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            outer, self._statement = self._statement, node
            self._visit_statement(node)
            self._statement = outer
        else:
            super().visit(node)

    def _visit_statement(self, node: ast.stmt) -> None:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                if node.name in {"__repr__", "__str__"}:
                    return
                outer, self._is_called = self._is_called, not isinstance(node, ast.ClassDef)
                self._within.append(node.name)
                for child in node.body:  # neither decorators nor defaults nor annotations
                    self.visit(child)
                self._within.pop()
                self._is_called = outer
                return
            case ast.Assert() | ast.Import() | ast.ImportFrom() | ast.Delete() | ast.Raise():
                # An assertion is a check of its own, `del` breaks cycles for the collector, and a
                # raise that is missing is found at the condition in front of it.
                return
            case ast.Expr(value=ast.Constant()):
                return  # a docstring
            case ast.Expr(value=ast.Call() | ast.Await()):
                if _is_for_readers(node.value):
                    return
                self._add(*self._span(node), "pass", node)
            case ast.Assign() | ast.AugAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if all(isinstance(target, ast.Attribute | ast.Subscript) for target in targets):
                    self._add(*self._span(node), "pass", node)
                if _is_text(node.value):
                    return
            case ast.AnnAssign():
                if node.value is not None and not _is_text(node.value):
                    self.visit(node.value)
                return
            case ast.Break():
                self._add(*self._span(node), "pass", node)
            case ast.Continue():
                self._add(*self._span(node), "pass", node)
            case ast.If() | ast.While():
                self._condition(node.test)
            case _:
                pass
        self.generic_visit(node)

    def _condition(self, test: ast.expr) -> None:
        start, end = self._span(test)
        text = self._data[start:end].decode()
        if not isinstance(test, ast.Compare | ast.Constant):
            self._add(start, end, f"not ({text})")

    def visit_Call(self, node: ast.Call) -> None:
        if not _is_for_readers(node):
            self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # of `zip`: a check of its own, like an assertion
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        return

    def visit_Compare(self, node: ast.Compare) -> None:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            new = COMPARISONS[type(operator)]
            old = next(text for kind, text in _WRITTEN.items() if kind is type(operator))
            self._between(left, right, old, new)
            left = right
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:], strict=False):
            self._between(left, right, old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        change = ARITHMETIC.get(type(node.op))
        if change is not None and not _is_text(node.left) and not _is_text(node.right):
            self._between(node.left, node.right, *change)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            start = self._span(node)[0]
            self._add(start, self._span(node.operand)[0], "")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if node.value is True or node.value is False:
            self._add(*self._span(node), str(not node.value))
        elif isinstance(node.value, int | float):
            self._add(*self._span(node), repr(node.value + 1))

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._condition(node.test)
        self.generic_visit(node)


_WRITTEN: dict[type[ast.cmpop], str] = {
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
    ast.Is: "is", ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in",
}  # fmt: skip


def _is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _is_for_readers(node: ast.expr) -> bool:
    if isinstance(node, ast.Await):
        return _is_for_readers(node.value)
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in FOR_READERS
