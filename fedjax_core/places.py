"""Identifies functions and variables by where they stand in their file, so that renaming one changes no
study's hash.

    fedavg.<locals>.step        ->  fedavg.<1>      the second function that is written within fedavg
    what `step` closes over     ->  in the order in which the source first mentions it

Two processes with the same source give the same places, whatever Python they run. A function that was pickled
on its way is found by equal code.

>>> def outer(rate, bound):
...     def inner(x):
...         return x * rate + bound
...     return inner
>>> list(captured(outer(0.1, 2.0)))
[0.1, 2.0]
"""

import dis
import inspect
import sys
import types
from collections.abc import Iterator
from operator import attrgetter
from typing import Any

# some Pythons make functions of these, others do not
_COMPREHENSIONS = (
    "<listcomp>",
    "<setcomp>",
    "<dictcomp>",
    "<genexpr>",
)


def standing(function: types.FunctionType) -> str:
    """The function's qualified name, with places instead of names for functions written within others."""
    top, _, within = function.__qualname__.partition(".<locals>.")
    if not within:
        return top
    try:
        outer = inspect.unwrap(attrgetter(top)(sys.modules[function.__module__]))
        return f"{top}.<{[*_written_in(outer.__code__)].index(function.__code__)}>"
    except (AttributeError, KeyError, ValueError):  # its outer function is no longer what it was
        return function.__qualname__


def captured(function: types.FunctionType) -> Iterator[Any]:
    """The values that a function closes over, in the order in which its source first mentions them."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    for name in sorted(cells, key=lambda name: (_first_mention(function.__code__, name), name)):
        try:
            yield cells[name].cell_contents
        except ValueError:  # a name not bound yet
            yield "unbound"


def beginning(code: types.CodeType) -> str:
    """The line in which a function begins; for a lambda the place where its body begins, as several may be in
    a line."""
    columns = [column for line, _, column, _ in code.co_positions() if line == code.co_firstlineno and column]
    return (
        f"{code.co_firstlineno}:{min(columns, default=0)}"
        if code.co_name == "<lambda>"
        else f"{code.co_firstlineno}"
    )


def _written_in(code: types.CodeType) -> Iterator[types.CodeType]:
    """The functions that are written within this one, each before those within it."""
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            if inner.co_name not in _COMPREHENSIONS:
                yield inner
            yield from _written_in(inner)


def _first_mention(code: types.CodeType, name: str) -> tuple[int, int]:
    """(line, column) where the function, or one within it, first reads or writes a variable that is not its
    own."""
    mentions = [
        (op.positions.lineno or 0, op.positions.col_offset or 0)
        for op in dis.get_instructions(code)
        if op.argval == name and "DEREF" in op.opname and op.positions is not None
    ]
    inner = (one for one in code.co_consts if isinstance(one, types.CodeType) and name in one.co_freevars)
    return min([*mentions, *(_first_mention(one, name) for one in inner)], default=(0, 0))
