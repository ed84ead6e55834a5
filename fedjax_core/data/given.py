"""Converts what a user gives for a column to an array that means the same; refuses by name what could mean
something else.

    masked arrays, nullable columns     a missing number is NaN; a whole number, a label or text that is missing is refused, with its row
    text, categories                    text, which `preprocess.OrdinalEncode` turns into codes that all clients share
    objects, dates, complex numbers     refused, with what to write instead
    a data frame as a column            a matrix, whose column names are the names of its features
    a data frame for all columns        its columns, by their names

`np.asarray` alone would drop what gives the numbers their meaning (a mask, a unit, a list of categories), and
a model would train on bare numbers.

>>> given(np.ma.masked_values([1.0, 9.96921e36], 9.96921e36), "x").tolist()
[1.0, nan]
>>> given(np.array(["icu", "ear"], object), "ward").dtype.kind
'U'
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np


def given(leaf: Any, name: str, whose: str = "") -> np.ndarray:
    """The leaf as an array of numbers, truth values or text; `whose` is for the message. Copies nothing that
    is an array of these."""
    if isinstance(leaf, np.ma.MaskedArray):
        array = _filled(leaf.data, np.ma.getmaskarray(leaf), name, whose)
    elif hasattr(leaf, "isna") and hasattr(leaf, "to_numpy"):
        array = _of_pandas(leaf, name, whose)
    else:
        array = np.asarray(leaf)
    if array.dtype.kind in "OT":
        array = _text(array, name, whose)
    if array.dtype.kind in "mM":
        raise TypeError(
            f"{whose}column {name!r} holds dates or times ({array.dtype}), and a model needs numbers: give the time since a date that all "
            "clients share, such as (column - np.datetime64('2020-01-01')) / np.timedelta64(1, 'D')"
        )
    if array.dtype.kind == "c":
        raise TypeError(
            f"{whose}column {name!r} holds complex numbers, of which a model would drop a part: give two real ones each, "
            "np.stack([column.real, column.imag], axis=-1)"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise TypeError(
            f"{whose}column {name!r} is {array.dtype}, which JAX cannot hold: convert it with np.asarray(column, np.float64)"
        )
    if array.dtype.kind == "S":
        raise TypeError(
            f"{whose}column {name!r} holds bytes: if they are text, give np.char.decode(column, 'utf-8')"
        )
    if not (is_text(array) or jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
        raise TypeError(
            f"{whose}column {name!r} has dtype {array.dtype}, which JAX cannot hold; give numbers, truth values or text"
        )
    return array


def is_text(array: Any) -> bool:
    """Whether the column holds text."""
    return bool(array.dtype.kind == "U")


def columns_of(columns: Any) -> Any:
    """A data frame of all columns as {name: column}, whose order does not matter; anything else as it is."""
    return {str(name): columns[name] for name in columns.columns} if _is_frame(columns) else columns


def features_in(columns: Any) -> dict[str, list[str]]:
    """{column: the names of its features}, of those columns that are data frames."""
    if not isinstance(columns, Mapping):
        return {}
    return {name: [str(one) for one in x.columns] for name, x in columns.items() if _is_frame(x)}


def _is_frame(x: Any) -> bool:
    return hasattr(x, "columns") and hasattr(x, "to_numpy")


def _filled(data: np.ndarray, missing: np.ndarray, name: str, whose: str) -> np.ndarray:
    """The data with NaN where a number is missing; raises where something else is."""
    if not missing.any():
        return data
    if data.dtype.kind != "f":
        row = int(np.argwhere(missing)[0][0])
        raise ValueError(
            f"{whose}column {name!r} has no value in row {row} (it is masked, or NA), and {data.dtype.name} has nothing that means "
            "missing: leave those rows out, give them a value of their own, or convert to float64, where it is NaN"
        )
    filled = np.array(data)
    filled[missing] = np.nan
    return filled


def _of_pandas(leaf: Any, name: str, whose: str) -> np.ndarray:
    """A column, or a frame, of pandas."""
    if hasattr(leaf, "columns"):
        each = [given(leaf.iloc[:, i], f"{name}.{column}", whose) for i, column in enumerate(leaf.columns)]
        if not each or any(x.dtype.kind not in "fiub" for x in each):
            words = ", ".join(
                str(c) for c, x in zip(leaf.columns, each, strict=True) if x.dtype.kind not in "fiub"
            )
            raise TypeError(
                f"{whose}column {name!r} is a data frame that is not all numbers ({words}): give those as columns of their own"
            )
        return np.stack(each, axis=1)
    kind = getattr(leaf.dtype, "numpy_dtype", leaf.dtype)
    if not isinstance(kind, np.dtype) or kind.kind == "O":
        return np.asarray(leaf.to_numpy(dtype=object))
    missing = np.asarray(leaf.isna(), bool)
    if isinstance(leaf.dtype, np.dtype) or not missing.any():
        return np.asarray(leaf.to_numpy(dtype=kind))
    return _filled(np.asarray(leaf.to_numpy(dtype=kind, na_value=kind.type(0))), missing, name, whose)


def _text(array: np.ndarray, name: str, whose: str) -> np.ndarray:
    """An array of Python's text as one of NumPy's; raises for other objects."""
    for place, value in np.ndenumerate(array):
        if not isinstance(value, str):
            no_value = (
                value is None
                or value is np.ma.masked
                or type(value).__name__ in ("NAType", "NaTType")
                or value != value
            )
            what = "no value" if no_value else f"an object ({type(value).__name__})"
            raise TypeError(
                f"{whose}column {name!r} has dtype {array.dtype} and holds {what} in row {place[0] if place else 0}: give numbers, such as "
                "np.asarray(column, np.float64), where NaN is missing, or text in every row"
            )
    return array.astype(str)
