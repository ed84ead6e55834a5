"""What the data of a population must be; each check names the value, the reason and the way out.

>>> leaves, structure, names = flat({"x": np.zeros((3, 2)), "y": np.array([0, 1, 1])})
>>> names, rows(leaves, names)
(['x', 'y'], 3)
>>> where(2, np.array([0, 2, 2, 3]), np.array(["a", "b", "c"]))
"client 2 (id 'c'), its row 0"
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core.types import Columns

_CHUNK_BYTES = 16 << 20  # scanned at a time, so that memory-mapped data is never all in memory


def flat(columns: Columns, whose: str = "") -> tuple[list[np.ndarray], Any, list[str]]:
    """The columns as read-only arrays (no copies), with their tree structure and their names; `whose` is for the message."""
    found, structure = jax.tree_util.tree_flatten_with_path(columns)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "columns" for path, _ in found]
    if not found:
        raise ValueError(f"{whose}there are no columns in {columns!r}; give a pytree of arrays such as {{'x': x, 'y': y}}")
    return [_array(leaf, name, whose) for name, (_, leaf) in zip(names, found, strict=True)], structure, names


def _array(leaf: Any, name: str, whose: str) -> np.ndarray:
    array = np.asarray(leaf)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise TypeError(
            f"{whose}column {name!r} has dtype {array.dtype}, which JAX cannot hold. "
            "Convert it to numbers first: np.asarray(column, np.float32), or codes from np.unique(column, return_inverse=True)."
        )
    if array.ndim == 0:
        raise ValueError(
            f"{whose}column {name!r} is the single number {array}, but a column's first axis is the example. "
            "A list in the columns is read as several columns: make it one with np.asarray(list)."
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False).view()
    array.flags.writeable = False
    return array


def rows(leaves: list[np.ndarray], names: list[str], whose: str = "") -> int:
    """How many rows every column has."""
    for leaf, name in zip(leaves, names, strict=True):
        if len(leaf) != len(leaves[0]):
            raise ValueError(
                f"{whose}columns differ in length: {names[0]!r} has {len(leaves[0])} rows, {name!r} has {len(leaf)}. "
                "Row i of every column must be the same example."
            )
    return len(leaves[0])


def offsets_of(offsets: Any, examples: int) -> np.ndarray:
    """The offsets as [N+1] int64, once they are known to cut the rows into clients."""
    given = np.asarray(offsets)
    if given.ndim == 1 and len(given) < 2:
        raise ValueError(f"the dataset is empty: offsets {given.tolist()} hold no clients; they are [0, rows of the first client, ...]")
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(f"offsets must be a one-dimensional integer array [N+1], got {given.dtype}{list(given.shape)}")
    found = given.astype(np.int64)
    if found[0] != 0:
        raise ValueError(f"offsets must start at 0, where client 0 begins, but start at {found[0]}; cut the columns first")
    if (falls := np.flatnonzero(np.diff(found) < 0)).size:
        i = int(falls[0])
        raise ValueError(
            f"offsets must not fall, but offsets[{i}] = {found[i]} and offsets[{i + 1}] = {found[i + 1]}, so client {i} would have "
            "a negative size. For sizes instead of offsets: np.concatenate([[0], np.cumsum(sizes)])."
        )
    if found[-1] != examples:
        raise ValueError(
            f"offsets must end at the number of rows, {examples}, but end at {found[-1]}; "
            "every row belongs to a client, and the last entry is where the last client ends"
        )
    found.flags.writeable = False
    return found


def ids_of(ids: Any, clients: int) -> np.ndarray:
    """The ids as [N] integers or strings, all different; positions where there are none."""
    if ids is None:
        found = np.arange(clients)
    else:
        found = ids.copy() if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iuU" else _ids_from(list(ids))
    if len(found) != clients:
        raise ValueError(f"there are {len(found)} ids for {clients} clients; give one id each, or none for positions")
    if found.dtype.kind == "i" and found.min(initial=0) < 0:
        raise ValueError(f"id {found.min()} is negative; an id is an integer from 0 to 2**64 - 1, or a string")
    ordered = np.sort(found)
    if (again := ordered[1:] == ordered[:-1]).any():
        twice = ordered[np.argmax(again)].item()
        first, second = np.flatnonzero(found == twice)[:2]
        raise ValueError(f"id {twice!r} is given to two clients, at positions {first} and {second}; ids address randomness and must differ")
    found.flags.writeable = False
    return found


def _ids_from(values: list[Any]) -> np.ndarray:
    if all(isinstance(v, str) for v in values):
        return np.array(values, dtype=str)
    for v in values:
        if not isinstance(v, (int, np.integer)) or isinstance(v, bool):
            raise TypeError(
                f"id {v!r} is a {type(v).__name__}; ids are all integers or all strings: convert with ids=[str(i) for i in ids]"
            )
        if not 0 <= v < 2**64:
            raise ValueError(f"id {v} does not fit: an id is an integer from 0 to 2**64 - 1, or a string")
    return np.array(values, np.int64 if max(values) < 2**63 else np.uint64)


def where(row: int, offsets: np.ndarray, ids: np.ndarray) -> str:
    """Whose row this is, in words."""
    client = int(np.searchsorted(offsets, row, side="right")) - 1
    return f"client {client} (id {ids[client].item()!r}), its row {row - int(offsets[client])}"


def _chunks(leaf: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, _CHUNK_BYTES * len(leaf) // max(1, leaf.nbytes))
    for start in range(0, len(leaf), step):
        yield start, leaf[start : start + step]


def finite(leaves: list[np.ndarray], names: list[str], offsets: np.ndarray, ids: np.ndarray) -> None:
    """Raises where a floating column holds NaN or an infinity."""
    for leaf, name in zip(leaves, names, strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        for start, chunk in _chunks(leaf):
            good = np.isfinite(chunk)
            if not good.all():
                row = int(np.argwhere(~good)[0][0])
                value = chunk[row][~good[row]].flat[0]
                raise ValueError(
                    f"column {name!r} holds {value} at {where(start + row, offsets, ids)}: one such value makes the whole model NaN. "
                    "Fill in or drop those rows, or pass allow_nan=True where the model expects it."
                )


def labels(leaf: np.ndarray, name: str, classes: int, offsets: np.ndarray, ids: np.ndarray) -> None:
    """Raises unless the column is of integers from 0 to classes - 1."""
    if leaf.dtype.kind not in "iub":
        raise TypeError(f"labels {name!r} have dtype {leaf.dtype}, but class labels are integers; convert with .astype(np.int32)")
    for start, chunk in _chunks(leaf):
        bad = (chunk < 0) | (chunk >= classes)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            value = chunk[row][bad[row]].flat[0]
            raise ValueError(
                f"label {value} in column {name!r} at {where(start + row, offsets, ids)} is outside 0 to {classes - 1}. "
                f"Number the classes from 0 with np.unique(labels, return_inverse=True), or build the model for more than {classes}."
            )
