"""Checks of a population's data; each error names the value, the reason and the way out.

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

from fedjax_core.data.given import columns_of, given, is_text
from fedjax_core.types import Columns

_CHUNK_BYTES = 16 << 20  # scanned at a time, so that memory-mapped data is never all in memory


def flat(columns: Columns, whose: str = "") -> tuple[list[np.ndarray], Any, list[str]]:
    """The columns as read-only arrays (no copies), with their tree structure and their names; `whose` is for
    the message."""
    columns = columns_of(columns)
    leaves, structure = jax.tree_util.tree_flatten_with_path(columns)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") or "columns" for path, _ in leaves]
    if not leaves:
        raise ValueError(
            f"{whose}there are no columns in {columns!r}; give a pytree of arrays such as {{'x': x, 'y': y}}"
        )
    return (
        [_array(leaf, name, whose) for name, (_, leaf) in zip(names, leaves, strict=True)],
        structure,
        names,
    )


def _array(leaf: Any, name: str, whose: str) -> np.ndarray:
    array = given(leaf, name, whose)
    if array.ndim == 0:
        raise ValueError(
            f"{whose}column {name!r} is a single value, but a column's first axis is the example. "
            "A list in the columns is read as several columns: make it one with np.asarray(list)."
        )
    array = array.astype(array.dtype.newbyteorder("="), copy=False).view()
    array.flags.writeable = False
    return array


def dtype_of(leaf: Any) -> str:
    """The column's dtype in a word; one word for text of any length."""
    return "text" if is_text(leaf) else str(leaf.dtype.name)


def rows(leaves: list[np.ndarray], names: list[str], whose: str = "") -> int:
    """The number of rows, which every column must have."""
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
        raise ValueError(
            f"the dataset is empty: offsets {given.tolist()} hold no clients; they are [0, rows of the first client, ...]"
        )
    if given.ndim != 1 or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(
            f"offsets must be a one-dimensional integer array [N+1], got {given.dtype}{list(given.shape)}"
        )
    checked = given.astype(np.int64)
    if checked[0] != 0:
        raise ValueError(
            f"offsets must start at 0, where client 0 begins, but start at {checked[0]}; cut the columns first"
        )
    if (falls := np.flatnonzero(np.diff(checked) < 0)).size:
        i = int(falls[0])
        raise ValueError(
            f"offsets must not fall, but offsets[{i}] = {checked[i]} and offsets[{i + 1}] = {checked[i + 1]}, so client {i} would have "
            "a negative size. For sizes instead of offsets: np.concatenate([[0], np.cumsum(sizes)])."
        )
    if checked[-1] != examples:
        raise ValueError(
            f"offsets must end at the number of rows, {examples}, but end at {checked[-1]}; "
            "every row belongs to a client, and the last entry is where the last client ends"
        )
    checked.flags.writeable = False
    return checked


def ids_of(ids: Any, clients: int) -> np.ndarray:
    """The ids as [N] integers or strings, all different; positions where there are none."""
    if ids is None:
        checked = np.arange(clients)
    else:
        checked = (
            ids.copy()
            if isinstance(ids, np.ndarray) and ids.ndim == 1 and ids.dtype.kind in "iuU"
            else _ids_from(list(ids))
        )
    if len(checked) != clients:
        raise ValueError(
            f"there are {len(checked)} ids for {clients} clients; give one id each, or none for positions"
        )
    if checked.dtype.kind == "i" and checked.min(initial=0) < 0:
        raise ValueError(
            f"id {checked.min()} is negative; an id is an integer from 0 to 2**64 - 1, or a string"
        )
    ordered = np.sort(checked)
    if (again := ordered[1:] == ordered[:-1]).any():
        twice = ordered[np.argmax(again)].item()
        first, second = np.flatnonzero(checked == twice)[:2]
        raise ValueError(
            f"id {twice!r} is given to two clients, at positions {first} and {second}; ids address randomness and must differ"
        )
    checked.flags.writeable = False
    return checked


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
    """The client and its row that a row of the flat columns is, in words."""
    client = int(np.searchsorted(offsets, row, side="right")) - 1
    return f"client {client} (id {ids[client].item()!r}), its row {row - int(offsets[client])}"


def _chunks(leaf: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    step = max(1, _CHUNK_BYTES * len(leaf) // max(1, leaf.nbytes))
    for start in range(0, len(leaf), step):
        yield start, leaf[start : start + step]


LARGEST = 2.0**64
"""Numbers up to this one can be squared in float32: a loss of larger ones is infinite, though they may be
finite themselves."""

_STEP = 2.0**-23  # relative distance between neighbours in float32
_SUSPECTS = 1000  # suspect numbers of a row that are looked at one by one
_SAMPLE = 1 << 22  # numbers of a column that are looked at for what float32 loses
# Blocks of consecutive rows with the sample: reading single rows of a file would read most of it.
_BLOCKS = 64
_COMPARED = 1000  # numbers that are compared: of more, some would coincide however finely they differ


def usable(x: np.ndarray, missing: bool = False) -> np.ndarray:
    """A mask of the numbers that a model can use: finite, and not too large; all where they are not floating.
    `missing`: NaN as well."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return np.ones(x.shape, bool)
    x = x if x.dtype.itemsize >= 4 else x.astype(np.float32)
    good = np.abs(x) < LARGEST
    return good | np.isnan(x) if missing else good


def fits(x: np.ndarray) -> np.ndarray:
    """A mask of the numbers that fit the 32 bits that a device has for whole numbers."""
    if x.dtype.kind not in "iu" or x.dtype.itemsize < 8:
        return np.ones(x.shape, bool)
    limits = np.iinfo(np.int32 if x.dtype.kind == "i" else np.uint32)
    return (x >= limits.min) & (x <= limits.max)


def finite(
    leaves: list[np.ndarray], names: list[str], offsets: np.ndarray, ids: np.ndarray, missing: Any = ()
) -> None:
    """Raises where a floating column holds NaN, an infinity or what is too large; in the columns `missing`
    NaN may be."""
    for leaf, name in zip(leaves, names, strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        for start, chunk in _chunks(leaf):
            good = usable(chunk, name in missing)
            if not good.all():
                row = int(np.argwhere(~good)[0][0])
                problem = _explain(chunk[row][~good[row]].flat[0], name)
                raise ValueError(
                    f"column {name!r} holds {problem[0]} at {where(start + row, offsets, ids)}: {problem[1]}."
                )


def _explain(value: Any, name: str) -> tuple[str, str]:
    """(what is wrong with a number, what it does and what to do); a finite number itself is not shown, as it
    is somebody's."""
    if not np.isfinite(value):
        return (
            str(value),
            "one such value makes the whole model NaN. Fill in or drop those rows, or pass allow_nan=True where the model expects it",
        )
    if np.issubdtype(type(value), np.integer):
        return (
            "a whole number that does not fit 32 bits",
            f"codes of all clients alike come from fc.preprocess.OrdinalEncode({name!r}); what nothing learns from, such as a "
            f"patient's number, is left out with clients.without({name!r}); a measurement is given as float64",
        )
    return (
        f"a number of more than {LARGEST:.2g}",
        "its square, if not itself, is infinite in float32. Make it NaN if it stands for a missing value, or choose another unit",
    )


def numbers(
    leaves: list[np.ndarray],
    names: list[str],
    offsets: np.ndarray,
    ids: np.ndarray,
    but: Any = (),
    whole: bool = True,
) -> None:
    """Raises where a column does not suit a model: text, or numbers that change in 32 bits; skips the columns
    `but`.

    NaN and infinities are allowed. Without `whole`, checks only what needs no reading of all data.
    """
    for leaf, name in zip(leaves, names, strict=True):
        if name in but:
            continue
        if is_text(leaf):
            raise ValueError(text_needs_codes(name))
        for start, chunk in _chunks(leaf) if whole and leaf.dtype.itemsize >= 4 else ():
            good = fits(chunk) & (usable(chunk) | ~np.isfinite(chunk))
            if not good.all():
                row = int(np.argwhere(~good)[0][0])
                problem = _explain(chunk[row][~good[row]].flat[0], name)
                raise ValueError(
                    f"column {name!r} holds {problem[0]} at {where(start + row, offsets, ids)}: {problem[1]}."
                )
        exact(leaf, name)


def exact(leaf: np.ndarray, name: str) -> None:
    """Raises where float32 makes different numbers of a column the same. Looks at a sample of a large
    column."""
    if lost := _lost(leaf):
        raise ValueError(
            f"column {name!r}{lost.rstrip()} holds numbers so far from 0 that float32 makes different ones the same, such as times in "
            f"seconds since 1970: prepare it with fc.preprocess.Standardise({name!r}), which computes in float64, or count from a date or "
            f"value near them that all clients share; what nothing learns from is left out with clients.without({name!r})."
        )


def text_needs_codes(name: str) -> str:
    """The message of what to do with a column of text."""
    return (
        f"column {name!r} holds text, and a model needs numbers: fc.preprocess.OrdinalEncode({name!r}) gives every category one code "
        f"that all clients share, or is told the list of categories; what nothing learns from is left out with clients.without({name!r})"
    )


def _lost(leaf: np.ndarray) -> str:
    """The place in a row where float32 loses what tells examples apart, in words; empty if there is none."""
    wide = leaf.dtype.kind == "f" and leaf.dtype.itemsize == 8
    # one whole number a row may be a name
    if not wide and not (leaf.dtype.kind in "iu" and leaf.dtype.itemsize >= 4 and leaf.ndim > 1):
        return ""
    width = max(1, int(np.prod(leaf.shape[1:])))
    sample = np.asarray(_some(leaf, max(_BLOCKS, _SAMPLE // width)), np.float64).reshape(-1, width)
    known = np.isfinite(sample)
    low, high = (
        np.where(known, sample, np.inf).min(axis=0, initial=np.inf),
        np.where(known, sample, -np.inf).max(axis=0, initial=-np.inf),
    )
    with np.errstate(invalid="ignore"):  # where nobody has a value
        # Otherwise float32 is far finer than they differ.
        suspect = (high > low) & (np.maximum(np.abs(low), np.abs(high)) * _STEP > 3e-7 * (high - low))
    for i in np.flatnonzero(suspect)[:_SUSPECTS]:
        x = sample[known[:, i], i]
        narrow = x.astype(np.float32)
        if np.array_equal(x, np.round(x)) and np.abs(x).max() < 2.0**62:
            lost = np.abs(narrow - x).max() >= np.gcd.reduce(x.astype(np.int64)) / 2
        else:
            few = slice(None, None, -(-len(x) // _COMPARED))
            lost = len(np.unique(narrow[few])) < 0.9 * len(np.unique(_coarse(x[few])))
        if lost:
            return f" (number {i} of each row)" if leaf.ndim > 1 else " "
    return ""


def _some(leaf: np.ndarray, rows: int) -> np.ndarray:
    """At most this many of the rows, in evenly spread blocks."""
    if len(leaf) <= rows:
        return leaf
    starts = np.linspace(0, len(leaf) - rows // _BLOCKS, _BLOCKS).astype(int)
    return np.concatenate([leaf[start : start + rows // _BLOCKS] for start in starts.tolist()])


def _coarse(x: np.ndarray) -> np.ndarray:
    """The numbers rounded to 36 bits, so that rounding in the last bits of a sum does not count as a
    difference."""
    part, exponent = np.frexp(x)
    return np.ldexp(np.round(part * 2.0**36), exponent - 36)


def labels(leaf: np.ndarray, name: str, classes: int, offsets: np.ndarray, ids: np.ndarray) -> None:
    """Raises unless the column is of whole numbers from 0 to classes - 1, in whatever dtype."""
    if is_text(leaf):
        raise TypeError(text_needs_codes(name))
    for start, chunk in _chunks(leaf):
        bad = ~((chunk >= 0) & (chunk < classes))  # true for NaN too
        if floating := chunk.dtype.kind not in "iub":
            bad |= chunk != np.round(chunk)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            kind = "a whole number " if floating else ""
            raise ValueError(
                f"the label in column {name!r} at {where(start + row, offsets, ids)}, is not {kind}from 0 to {classes - 1}. "
                f"All clients must number the classes from 0 alike, by one list of them: fc.preprocess.OrdinalEncode({name!r}, "
                "categories=[...]), by which a value that is not in the list has the number after the last. "
                f"Or build the model for more than {classes}."
            )


def positions(given: Any, clients: int) -> np.ndarray:
    """[n] int64 from 0: positions of clients; negative ones are counted from the end. Raises for any others,
    and for none."""
    array = np.asarray(given)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise TypeError(
            f"positions must be a one-dimensional integer array, got {array.dtype}{list(array.shape)}; for a mask use np.flatnonzero(mask)"
        )
    if not array.size:
        raise ValueError("select() got no positions, and a population needs at least one client")
    if (outside := array[(array < -clients) | (array >= clients)]).size:
        raise IndexError(
            f"there is no client {outside[0]}: there are {clients}, at positions 0 to {clients - 1}"
        )
    return array.astype(np.int64) % clients


def groups(x: np.ndarray, name: str, word: str) -> np.ndarray:
    """The column, checked, that groups examples (persons, classes); `word` is the argument that named it."""
    whole = x.dtype.kind in "biuU" or (x.dtype.kind == "f" and bool((x == np.round(x)).all()))
    if x.ndim != 1 or not whole:
        raise ValueError(
            f"{word}={name!r} must be a column of whole numbers, truth values or text, one an example without any missing, "
            f"got {dtype_of(x)}{list(x.shape[1:])}"
        )
    return x
