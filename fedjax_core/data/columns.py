"""Reads columns of examples as a device wants them, from memory or straight from memory-mapped files.

A memory-mapped column is read by `preadv` into its place. Reading through the map costs a page fault a client
and keeps the pages in this process: going from a thousand to a million clients (cohorts of 500) makes a round
2.4 times slower through the map, 1.1 to 1.2 times with `preadv` (2-core x86).

>>> x = np.arange(10, dtype=np.int64)
>>> out = np.zeros(3, np.int32)
>>> Column((), x).read(4, 7, out)
>>> out
array([4, 5, 6], dtype=int32)
"""

import mmap
import os
import weakref
from typing import Any

import jax
import numpy as np

from fedjax_core.data.checks import text_needs_codes
from fedjax_core.data.given import is_text
from fedjax_core.data.spill import map_of
from fedjax_core.types import Columns


class Column:
    """One column of all clients, whose rows are read into arrays of the dtype that a device works on."""

    def __init__(self, path: Any, x: np.ndarray) -> None:
        self.path, self.x, self.shape, self.target = path, x, x.shape, target_of(x, path)
        self._row = x.dtype.itemsize * int(np.prod(x.shape[1:]))
        self._file, self._start = _file_of(x)
        if self._file is not None:
            weakref.finalize(self, os.close, self._file)

    def read(self, start: int, end: int, out: np.ndarray) -> None:
        """Rows `start` to `end` into `out`."""
        if self._file is None:
            out[:] = narrow_column(self.path, self.x[start:end])
        elif self.target == self.x.dtype:
            self._fill(start, out)
        else:
            rows = np.empty((end - start, *self.shape[1:]), self.x.dtype)
            self._fill(start, rows)
            out[:] = narrow_column(self.path, rows)

    def _fill(self, start: int, rows: np.ndarray) -> None:
        assert self._file is not None
        whole: Any = rows
        position, left = self._start + start * self._row, rows.nbytes
        count = os.preadv(self._file, [whole], position)
        if count == left:
            return
        view = memoryview(whole).cast("B")  # a signal may cut a long read short
        while count < left:
            view, position, left = view[count:], position + count, left - count
            count = os.preadv(self._file, [view], position)
            if not count:
                raise OSError(
                    f"column {jax.tree_util.keystr(self.path)} ends after {position} bytes of its file: was it cut short?"
                )


def narrow(columns: Columns) -> Columns:
    """64-bit columns as the 32-bit ones a device works on; raises where a whole number does not fit."""
    if all(x.dtype.itemsize < 8 for x in jax.tree.leaves(columns)):
        return columns
    return jax.tree_util.tree_map_with_path(narrow_column, columns)


def narrow_column(path: Any, x: np.ndarray) -> np.ndarray:
    """One column of `narrow`, or some of its rows."""
    target = target_of(x, path)
    if target == x.dtype:
        return x
    name = jax.tree_util.keystr(path, simple=True, separator=".")
    if np.issubdtype(x.dtype, np.integer):
        limits, least, most = np.iinfo(target), x.min(initial=0), x.max(initial=0)
        if least < limits.min or most > limits.max:
            raise ValueError(
                f"column {name!r} holds whole numbers that do not fit {target}: codes of all clients alike come from "
                "fc.preprocess.OrdinalEncode; what nothing learns from is left out with clients.without"
            )
    try:
        with np.errstate(over="raise"):
            return x.astype(target)
    except FloatingPointError:
        raise ValueError(
            f"column {name!r} holds numbers that {target} cannot hold: make them NaN if they stand for missing values, or choose "
            "another unit; clients.check_numbers() says where they are"
        ) from None


def mapped(columns: Columns) -> bool:
    """Whether any column lies in a memory-mapped file."""
    return any(map_of(x) is not None for x in jax.tree.leaves(columns))


def target_of(x: np.ndarray, path: Any = ()) -> np.dtype:
    """The dtype that a device has for a column; raises for text."""
    if is_text(x):
        raise ValueError(text_needs_codes(jax.tree_util.keystr(path, simple=True, separator=".")))
    return np.dtype(jax.dtypes.canonicalize_dtype(x.dtype))


def forget(columns: Columns) -> None:
    """Gives the pages of memory-mapped columns back: what was read stays in the system's cache, not in this
    process."""
    for x in jax.tree.leaves(columns):
        mapping = map_of(x)
        if mapping is not None and hasattr(mapping, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)


def _file_of(x: np.ndarray) -> tuple[int | None, int]:
    """(the file of a memory-mapped column, opened to read; where in it the column begins), (None, 0) for any
    other."""
    base: Any = x
    while isinstance(base, np.ndarray) and not (
        isinstance(base, np.memmap) and not isinstance(base.base, np.memmap)
    ):
        base = base.base
    if (
        not isinstance(base, np.memmap)
        or base.filename is None
        or not x.flags.c_contiguous
        or not hasattr(os, "preadv")
    ):
        return None, 0
    try:
        file = os.open(base.filename, os.O_RDONLY)
    except OSError:  # the map still holds a file that is gone
        return None, 0
    return file, base.offset + x.__array_interface__["data"][0] - base.__array_interface__["data"][0]
