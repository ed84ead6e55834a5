"""Expressions over the columns of a table: a small typed language, so that what a site computes is data that it reads, and never code.

    ["column", name]    ["number", 2.0]    ["is", name, level]    ["+", a, b] and - * / ** < <= > >= == !=    ["log", a] and others

`parse` reads them from the text of one factor of a formula; `evaluate` computes one, a number for each row.
They travel to sites as JSON.

>>> from fedjax_core.stats.table import Table
>>> parse("np.log(age) + 1")
['+', ['log', ['column', 'age']], ['number', 1.0]]
>>> evaluate(parse("I(age ** 2)"), Table({"age": np.array([1.0, 3.0])})).tolist()
[1.0, 9.0]
>>> parse("__import__('os').system('ls')")
Traceback (most recent call last):
ValueError: "__import__('os').system('ls')" is not understood at "__import__('os').system('ls')": write columns, numbers, + - * / **, \
comparisons, and abs, exp, log, log10, log1p, sqrt
"""

import ast
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fedjax_core.stats.table import Table

Expression = list[Any]
"""A nested list, as in the module's first lines."""

_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "abs": np.abs, "exp": np.exp, "log": np.log, "log10": np.log10, "log1p": np.log1p, "sqrt": np.sqrt,
}  # fmt: skip
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "**": operator.pow,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_OF_AST: dict[type, str] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**",
    ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=",
}  # fmt: skip
COMPARISONS = frozenset(("<", "<=", ">", ">=", "==", "!=", "is", "is not"))
"""Operators that give truth values, 0 or 1."""
_DEEP = 30


def parse(text: str) -> Expression:
    """Parses an expression from text; raises ValueError for anything outside the language."""
    try:
        return _parsed(ast.parse(text, mode="eval").body, text, 0)
    except SyntaxError:
        raise ValueError(
            f"{text!r} is not an expression; a column whose name is no plain word is written Q('its name')"
        ) from None


def check(expression: Any, depth: int = 0) -> Expression:
    """Validates an expression that came from elsewhere, and returns it; raises ValueError."""
    if not isinstance(expression, list | tuple) or not expression or depth > _DEEP:
        raise ValueError("an expression is a list that begins with its kind, not too deep")
    kind, *rest = expression
    if kind == "number" and len(rest) == 1 and type(rest[0]) in (int, float) and np.isfinite(rest[0]):
        return ["number", float(rest[0])]
    if kind == "column" and len(rest) == 1 and isinstance(rest[0], str):
        return ["column", rest[0]]
    if kind in ("is", "is not") and len(rest) == 2 and all(isinstance(one, str) for one in rest):
        return [kind, *rest]
    if (kind in _FUNCTIONS and len(rest) == 1) or (kind in _OPERATORS and len(rest) == 2):
        return [kind, *(check(one, depth + 1) for one in rest)]
    raise ValueError(f"an expression of kind {str(kind)[:40]!r} with {len(rest)} parts is none that is known")


def evaluate(expression: Expression, table: Table) -> np.ndarray:
    """[rows] float64: the expression's value in each row; NaN where a column that it uses is missing
    there."""
    kind, *rest = expression
    if kind == "number":
        return np.full(table.rows, rest[0])
    if kind == "column":
        return table.numbers(rest[0])
    if kind in ("is", "is not"):
        labels = table.labels(rest[0])
        return np.where(labels == "", np.nan, (labels == rest[1]) == (kind == "is"))
    parts = [evaluate(one, table) for one in rest]
    with np.errstate(all="ignore"):  # values that are not finite are refused later, by column
        values = np.asarray((_FUNCTIONS[kind] if len(parts) == 1 else _OPERATORS[kind])(*parts), np.float64)
    return np.where(np.any([np.isnan(part) for part in parts], axis=0), np.nan, values)


def columns(expression: Expression) -> Iterator[str]:
    """The names of the columns that an expression uses, perhaps repeated."""
    kind, *rest = expression
    if kind in ("column", "is", "is not"):
        yield rest[0]
    elif kind != "number":
        for one in rest:
            yield from columns(one)


def _parsed(node: ast.expr, text: str, depth: int) -> Expression:
    if depth > _DEEP:
        raise ValueError(f"{text[:60]!r} is too deep an expression: make a column of it before")

    def inside(one: ast.expr) -> Expression:
        return _parsed(one, text, depth + 1)

    match node:
        case (
            ast.Name(id=name)
            | ast.Call(func=ast.Name(id="Q"), args=[ast.Constant(value=str(name))], keywords=[])
        ):
            return ["column", name]
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return ["number", float(value)]
        case ast.UnaryOp(op=ast.USub(), operand=one):
            return ["-", ["number", 0.0], inside(one)]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OF_AST:
            return [_OF_AST[type(op)], inside(left), inside(right)]
        case ast.Compare(
            left=left, ops=[ast.Eq() | ast.NotEq() as op], comparators=[ast.Constant(value=str(level))]
        ):
            of = inside(left)
            if of[0] != "column":
                raise ValueError(
                    f"{text!r} compares a text with {ast.unparse(left)!r}: only a column is compared with a text"
                )
            return ["is" if isinstance(op, ast.Eq) else "is not", of[1], level]
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OF_AST:
            return [_OF_AST[type(op)], inside(left), inside(right)]
        case ast.Call(func=ast.Name(id="I"), args=[one], keywords=[]):
            return inside(one)
        case ast.Call(
            func=ast.Name(id=name) | ast.Attribute(value=ast.Name(id="np"), attr=name),
            args=[one],
            keywords=[],
        ) if name in _FUNCTIONS:
            return [name, inside(one)]
    raise ValueError(
        f"{text!r} is not understood at {ast.unparse(node)!r}: write columns, numbers, + - * / **, comparisons, and "
        f"{', '.join(sorted(_FUNCTIONS))}"
    )
