"""Concatenates the columns of clients after checking that they are alike, and the row numbers of clients that
name theirs.

>>> columns, offsets = join([{"x": np.ones(3)}, {"x": np.zeros(1)}], np.array([7, 8]), {})
>>> columns["x"].tolist(), offsets.tolist()
([1.0, 1.0, 1.0, 0.0], [0, 3, 4])
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_core.data import checks
from fedjax_core.data.features import order
from fedjax_core.data.given import features_in, is_text
from fedjax_core.types import Columns


def join(each: list[Columns], ids: np.ndarray, features: dict[str, Any]) -> tuple[Columns, np.ndarray]:
    """(the clients' columns one after another, offsets); raises unless all columns are alike.

    Columns that name their features themselves are put into the order of `features`.
    """
    joined, sizes = [], np.zeros(len(each) + 1, np.int64)
    first, structure, names = checks.flat(each[0], whose(0, ids))
    for i, columns in enumerate(each):
        leaves, own_structure, own_names = checks.flat(columns, whose(i, ids))
        if own_structure != structure:
            raise ValueError(
                f"{whose(i, ids)}has columns {', '.join(own_names)}, but client 0 has {', '.join(names)}; "
                "all clients need the same columns in the same structure"
            )
        sizes[i + 1] = checks.rows(leaves, names, whose(i, ids))
        for column, own in features_in(columns).items():
            place = names.index(column)
            leaves[place] = leaves[place][:, order(own, features[column], column, whose(i, ids))]
        for leaf, other, name in zip(leaves, first, names, strict=True):
            if (leaf.dtype != other.dtype and not (is_text(leaf) and is_text(other))) or leaf.shape[
                1:
            ] != other.shape[1:]:
                raise ValueError(
                    f"{whose(i, ids)}column {name!r} is {leaf.dtype}{list(leaf.shape)}, "
                    f"but client 0's is {other.dtype}{list(other.shape)}; all clients need one dtype and one shape after the first axis"
                )
        joined.append(leaves)
    return structure.unflatten([np.concatenate(column) for column in zip(*joined, strict=True)]), np.cumsum(
        sizes
    )


def rows_of(parts: Sequence[Any], examples: int) -> np.ndarray:
    """All clients' row numbers one after another."""
    if not len(parts):
        raise ValueError("the dataset is empty: parts holds no clients; give one index array for each client")
    rows_each = []
    for i, part in enumerate(parts):
        rows = np.asarray(part)
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise TypeError(
                f"part {i} must be a one-dimensional integer array of row numbers, got {rows.dtype}{list(rows.shape)}; "
                "for a mask use np.flatnonzero(mask)"
            )
        if (outside := rows[(rows < 0) | (rows >= examples)]).size:
            raise ValueError(
                f"part {i} names row {outside[0]}, but the columns have rows 0 to {examples - 1}; were they partitioned together?"
            )
        rows_each.append(rows.astype(np.int64))
    return np.concatenate(rows_each)


def whose(i: int, ids: np.ndarray) -> str:
    """The beginning of a message about one client."""
    return f"client {i} (id {ids[i].item()!r}): "
