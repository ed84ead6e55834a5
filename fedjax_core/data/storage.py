"""Saves a population in a folder, one .npy a column, and opens it again without reading the data.

    folder/clients.json    the structure of the columns, their dtypes, the names of their features, categories, the format's version
    folder/offsets.npy     [N+1] int64
    folder/ids.npy         [N] integers or strings
    folder/column_0.npy    ... one a leaf, numbered as in the structure

The folder is written under another name and renamed when whole and on disk, so that it is there entirely or
not at all. It may hold records of patients, so what is made is for its owner alone: folders 0700, files 0600,
whatever the umask. Columns go out straight from where they are: memory-mapped data larger than memory can be
written.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp()) / "data"
>>> write(folder, {"x": np.arange(3)}, np.array([0, 1, 3]), np.arange(2))
>>> columns, offsets, ids, *_ = read(folder)
>>> columns["x"].tolist(), offsets.tolist(), ids.tolist()
([0, 1, 2], [0, 1, 3], [0, 1])
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_core.files import FOLDER, make_folder, opener
from fedjax_core.types import Columns

_VERSION = 1


def write(
    folder: str | Path,
    columns: Columns,
    offsets: np.ndarray,
    ids: np.ndarray,
    features: Mapping[str, Sequence[str]] | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes the folder, which must not exist yet."""
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(
            f"{folder} exists already, and data is not overwritten; remove it first or choose another folder"
        )
    leaves: list[np.ndarray] = []
    structure = _describe(columns, leaves, "columns")
    unfinished = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    make_folder(unfinished.parent)
    unfinished.mkdir(FOLDER)
    try:
        texts = {"features": features, "categories": categories}
        named = {
            word: {name: list(of) for name, of in these.items()} for word, these in texts.items() if these
        }
        description = named | {
            "fedjax_core clients": _VERSION,
            "structure": structure,
            "dtypes": [leaf.dtype.name for leaf in leaves],
        }
        with open(unfinished / "clients.json", "w", opener=opener) as file:
            json.dump(description, file, indent=1)
            _to_disk(file)
        arrays = {"offsets": offsets, "ids": ids, **{f"column_{i}": leaf for i, leaf in enumerate(leaves)}}
        for name, array in arrays.items():
            with open(unfinished / f"{name}.npy", "wb", opener=opener) as data:
                np.save(data, array, allow_pickle=False)
                _to_disk(data)
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def read(
    folder: str | Path,
) -> tuple[Columns, np.ndarray, np.ndarray, dict[str, list[str]], dict[str, list[str]]]:
    """(columns, offsets, ids, names of features, categories) as written; the columns are memory-mapped and
    read-only."""
    folder = Path(folder)
    if not (folder / "clients.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no clients.json, so it is not data written by Clients.save()"
        )
    description = json.loads((folder / "clients.json").read_text())
    if description.get("fedjax_core clients") != _VERSION:
        raise ValueError(
            f"{folder} has format version {description.get('fedjax_core clients')}, this package reads {_VERSION}; save it again"
        )
    leaves = []
    for i, dtype in enumerate(description["dtypes"]):
        leaf = _load(folder / f"column_{i}.npy", mapped=True)
        # a .npy does not know bfloat16
        leaves.append(leaf if leaf.dtype.kind != "V" else leaf.view(np.dtype(dtype)))
    offsets, ids = _load(folder / "offsets.npy"), _load(folder / "ids.npy")
    return (
        _rebuild(description["structure"], leaves),
        offsets,
        ids,
        description.get("features", {}),
        description.get("categories", {}),
    )


def _load(path: Path, mapped: bool = False) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r" if mapped else None)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is missing or damaged ({error}); save the data again") from error


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _describe(columns: Columns, leaves: list[np.ndarray], path: str) -> Any:
    """The structure as JSON: a leaf is its number, and is appended to `leaves`."""
    if type(columns) is dict:
        for key in columns:
            if not isinstance(key, str):
                raise TypeError(
                    f"{path} has the key {key!r}; only string keys can be saved: rename it to {str(key)!r}"
                )
        return {"dict": {key: _describe(columns[key], leaves, f"{path}[{key!r}]") for key in sorted(columns)}}
    if type(columns) in (list, tuple):
        return {type(columns).__name__: [_describe(c, leaves, f"{path}[{i}]") for i, c in enumerate(columns)]}
    if isinstance(columns, np.ndarray):
        leaves.append(columns)
        return len(leaves) - 1
    raise TypeError(
        f"{path} is a {type(columns).__name__}; only dicts, lists and tuples of arrays can be saved. "
        "Give the columns as a dict first: Clients.from_arrays({'x': x, ...}, offsets=clients.offsets, ids=clients.ids)."
    )


def _rebuild(structure: Any, leaves: list[np.ndarray]) -> Columns:
    if isinstance(structure, int):
        return leaves[structure]
    ((kind, inside),) = structure.items()
    if kind == "dict":
        return {key: _rebuild(value, leaves) for key, value in inside.items()}
    return (tuple if kind == "tuple" else list)(_rebuild(value, leaves) for value in inside)
