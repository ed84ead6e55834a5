"""Names of the numbers in each row of a matrix column, in order.

A model knows its inputs by their place alone: where two hospitals have the columns of their tables in
different order, each trains on what the other means by something else. With names, an order is put right, or
refused.

>>> checked({"x": ["age", "weight"]}, {"x": np.zeros((3, 2))})
{'x': ('age', 'weight')}
>>> order(("weight", "age"), ("age", "weight"), "x")
array([1, 0])
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_core.data import checks, spill

Features = Mapping[str, Sequence[str]]
"""{column: the names of the numbers in each of its rows}."""


def checked(features: Any, columns: Mapping[str, np.ndarray]) -> dict[str, tuple[str, ...]]:
    """The names, checked against these columns: one for each number of a row, all different."""
    named = {}
    for column, names in dict(features or {}).items():
        if column not in columns:
            raise ValueError(
                f"features= has names for {column!r}, which is no column; the columns are {', '.join(columns)}"
            )
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"features={{{column!r}: ...}} must be a list of texts, got {names!r}")
        names, shape = tuple(names), columns[column].shape[1:]
        if len(shape) != 1 or len(names) != shape[0]:
            raise ValueError(
                f"features= has {len(names)} names for column {column!r}, whose rows are {list(shape)}: give one for each number of a row"
            )
        if twice := [
            name
            for name in names
            if names.count(name) > 1 or not name.isprintable() or not 0 < len(name) <= 200
        ]:
            raise ValueError(
                f"the feature {twice[0]!r} of {column!r} is there twice, or is not a name: give each one of its own, in print"
            )
        named[column] = names
    return named


def order(have: Sequence[str], want: Sequence[str], column: str, whose: str = "") -> np.ndarray:
    """The place in `have` of each wanted feature; raises, naming it, where one is missing or there is another
    one."""
    if odd := [name for name in want if name not in set(have)]:
        raise ValueError(f"{whose}column {column!r} has no feature {odd[0]!r}; it has {_listed(have)}")
    if more := [name for name in have if name not in set(want)]:
        raise ValueError(
            f"{whose}column {column!r} has the feature {more[0]!r}, which is not wanted: leave it out, or name it"
        )
    place = {name: i for i, name in enumerate(have)}
    return np.array([place[name] for name in want])


def check_same(trained: Features, given: Features) -> None:
    """Raises where a column's features are named in both, and differ in their names or order: a model would
    take one for another."""
    for column, names in trained.items():
        if column in given and tuple(given[column]) != tuple(names):
            order(given[column], names, column, "of the clients to evaluate, ")
            raise ValueError(
                f"the clients to evaluate have the features of column {column!r} in the order {_listed(given[column])}, and the "
                f"model was trained on {_listed(names)}: evaluate on clients.arranged(trained.features)"
            )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def matrix_of(columns: dict[str, np.ndarray], names: Sequence[str], column: str) -> np.ndarray:
    """A matrix of the columns with these names, in float32 where that holds them all; raises where one is not
    numeric."""
    for name in names:
        if name not in columns:
            raise ValueError(
                f"there is no column {column!r}, and no column {name!r} to make it of; there are {', '.join(columns)}"
            )
        if columns[name].ndim != 1 or columns[name].dtype.kind not in "fiub":
            raise ValueError(
                f"column {name!r}, of which {column!r} is to be made, must hold a number an example, got "
                f"{checks.dtype_of(columns[name])}{list(columns[name].shape[1:])}"
            )
    dtype = np.result_type(np.float32, *(columns[name].dtype for name in names))
    return np.stack([columns[name].astype(dtype) for name in names], axis=1)


def arrange(
    columns: Any, have: Features, want: Features, categories: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """(columns, names) with the features of each column in the wanted order; a missing column is made of its
    features.

    In a matrix a category that is missing is NaN: its code, -1, would be taken for a number. Raises, naming
    it, where a feature is missing or there is another one.
    """
    arranged, names = dict(columns), {name: tuple(of) for name, of in have.items()}
    for column, wanted in want.items():
        if column in arranged and column not in names:
            raise ValueError(
                f"column {column!r} has no names of its features, by which it could be put in order: give them, Clients.from_list(..., "
                f"features={{{column!r}: [...]}})"
            )
        if column in arranged:
            places = order(names[column], wanted, column)
            if (places != np.arange(len(places))).any():
                arranged[column] = spill.reordered(arranged[column], places)
        else:
            arranged[column] = matrix_of(
                {name: _known(x, name in categories) for name, x in arranged.items()}, wanted, column
            )
            arranged = {name: x for name, x in arranged.items() if name not in set(wanted) - {column}}
        names[column] = tuple(wanted)
    return arranged, {name: of for name, of in names.items() if name in arranged}


def _known(x: Any, category: bool) -> Any:
    return np.where(x < 0, np.nan, x).astype(np.float32) if category and (x < 0).any() else x
