"""Temporary files for columns that are made from memory-mapped ones, so that memory does not grow with the
data.

What lies in files because it is larger than memory stays larger than memory when its rows are chosen or its
numbers are prepared. The file is readable by its owner alone, and gone with the process, however that ends.

>>> x = np.arange(6.0).reshape(3, 2)
>>> taken(x, np.array([2, 0])).tolist()
[[4.0, 5.0], [0.0, 1.0]]
"""

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

LEAST_BYTES = 32 << 20  # smaller columns are in memory, wherever they come from
_CHUNK_BYTES = 16 << 20


def room(
    shape: tuple[int, ...], dtype: Any, like: np.ndarray, folder: str | Path | None = None
) -> np.ndarray:
    """A new array to write to: in memory, or, if it is large and `like` is memory-mapped, in a file on the
    disk of `folder`."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if nbytes < LEAST_BYTES or map_of(like) is None:
        return np.empty(shape, dtype)
    if folder is not None:
        os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if hasattr(os, "posix_fallocate"):  # reserves now: a full disk would end the process later
                os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as error:
            raise OSError(
                error.errno,
                f"there is no room for {nbytes / 1e9:.1f} GB of prepared columns in {folder or tempfile.gettempdir()}, where they go "
                "as the data are memory-mapped: free some, or name another folder (TMPDIR, or `folder` of a site)",
            ) from None
        return np.memmap(file, dtype, mode="r+", shape=shape)  # the map holds the file open


def taken(x: np.ndarray, rows: np.ndarray, folder: str | Path | None = None) -> np.ndarray:
    """A copy of these rows of the column; in such a file if it is large and `x` is memory-mapped."""
    copy = room((len(rows), *x.shape[1:]), x.dtype, x, folder)
    step = max(1, _CHUNK_BYTES * len(x) // max(1, x.nbytes))
    for begin in range(0, len(rows), step):
        copy[begin : begin + step] = x[rows[begin : begin + step]]
    settle(copy)
    return copy


def reordered(x: np.ndarray, places: np.ndarray, folder: str | Path | None = None) -> np.ndarray:
    """A copy with the numbers of each row in another order, stored likewise."""
    copy = room(x.shape, x.dtype, x, folder)
    step = max(1, _CHUNK_BYTES * len(x) // max(1, x.nbytes))
    for begin in range(0, len(x), step):
        copy[begin : begin + step] = x[begin : begin + step, places]
    settle(copy)
    return copy


def settle(x: np.ndarray) -> None:
    """Writes an array in a file out to it, and gives its pages back."""
    mapping = map_of(x)
    if mapping is not None:
        mapping.flush()
        if hasattr(mapping, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)


def map_of(x: Any) -> mmap.mmap | None:
    """The map of the file in which an array lies; None of one in memory."""
    while isinstance(x, np.ndarray):
        if isinstance(x, np.memmap) and getattr(x, "_mmap", None) is not None:
            return x._mmap  # type: ignore[attr-defined]
        x = x.base
    return x if isinstance(x, mmap.mmap) else None
