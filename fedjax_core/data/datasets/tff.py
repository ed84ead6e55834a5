"""The federated data sets that TensorFlow Federated publishes: EMNIST by writer, Shakespeare by role,
CIFAR-100 by Pachinko allocation.

A file is a compressed SQLite database with a row an example: the split, the client, and a `tf.train.Example`.
It is read here without TensorFlow. The unpacked database stays beside the download: EMNIST's takes 4.7 GB on
the disk.

Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018 (EMNIST, Shakespeare); Reddi et al., "Adaptive
Federated Optimization", ICLR 2021 (CIFAR-100).
"""

import lzma
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.data.datasets import text
from fedjax_core.data.datasets.base import DataError, Remote, find
from fedjax_core.files import cache_folder

_TFF = "https://storage.googleapis.com/tff-datasets-public/"
EMNIST = Remote(
    "emnist_all.sqlite.lzma",
    f"{_TFF}emnist_all.sqlite.lzma",
    "c3aaf91b4cf4e69d53d81627ad119eccdc878ff906f68e66063ff10f67faad48",
    170507172,
)
SHAKESPEARE = Remote(
    "shakespeare.sqlite.lzma",
    f"{_TFF}shakespeare.sqlite.lzma",
    "d3d11fceb9e105439ac6f4d52af6efafed5a2a1e1eb24c5bd2dd54ced242f5c4",
    1329828,
)
CIFAR100 = Remote(
    "cifar100.sqlite.lzma",
    f"{_TFF}cifar100.sqlite.lzma",
    "23d3916c9caa33395737ee560cc7cb77bbd05fc7b73647ee7be3a7e764172939",
    153019920,
)
Example = dict[str, Any]
"""A record by the names of its features: arrays of float32 or int64, or a list of bytes."""


class Federated(NamedTuple):
    """The same clients' examples for training and for tests."""

    train: Clients
    test: Clients


def emnist(only_digits: bool = False) -> Federated:
    """Letters and digits of 3,400 writers (3,383 for digits): x uint8 [n, 28, 28, 1], ink 255 on 0, and y
    int32 [n] below 62 (10)."""

    def columns(of: list[Example]) -> dict[str, np.ndarray]:
        pixels = np.stack([one["pixels"] for one in of]).reshape(-1, 28, 28, 1)
        return {"x": np.rint(255 * (1 - pixels)).astype(np.uint8), "y": _labels(of)}

    return _federated("emnist", EMNIST, columns, "digits_only_" if only_digits else "")


def cifar100_pachinko() -> Federated:
    """CIFAR-100 dealt to 500 training and 100 test clients by Pachinko allocation: x uint8 [n, 32, 32, 3] and
    y int32 [n] below 100."""

    def columns(of: list[Example]) -> dict[str, np.ndarray]:
        return {
            "x": np.stack([one["image"] for one in of]).reshape(-1, 32, 32, 3).astype(np.uint8),
            "y": _labels(of),
        }

    return _federated("cifar100", CIFAR100, columns)


def shakespeare(length: int = 80) -> Federated:
    """Lines of 715 roles as sequences of characters: x and y int32 [n, length], y one character ahead
    (`datasets.text`)."""

    def columns(of: list[Example]) -> dict[str, np.ndarray]:
        x, y = text.sequences([one["snippets"][0] for one in of], length)
        return {"x": x, "y": y}

    return _federated("shakespeare", SHAKESPEARE, columns)


def parse(record: bytes) -> Example:
    """The features of a serialised `tf.train.Example`."""
    example: Example = {}
    for features in _fields(record, 1):
        for entry in _fields(features, 1):
            (name,), (feature,) = _fields(entry, 1), _fields(entry, 2)
            example[bytes(name).decode()] = _values(feature)
    return example


def _values(feature: memoryview) -> Any:
    """The values of a feature: a list of bytes, floats or whole numbers, packed or one by one."""
    for values in _fields(feature, 1):
        return [bytes(value) for value in _fields(values, 1)]
    for values in _fields(feature, 2):
        return np.concatenate(
            [np.frombuffer(part, "<f4") for part in _fields(values, 1)] or [np.zeros(0, np.float32)]
        )
    for values in _fields(feature, 3):
        return np.concatenate([_varints(part) for part in _fields(values, 1)] or [np.zeros(0, np.int64)])
    return []


def _fields(message: bytes | memoryview, wanted: int) -> list[memoryview]:
    """The bytes of each field of this number in a message of protocol buffers."""
    return [value for number, value in _walk(memoryview(message)) if number == wanted]


def _walk(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind, start = tag & 7, position
        if kind == 0:
            _, position = _varint(message, position)
        elif kind == 2:
            size, start = _varint(message, position)
            position = start + size
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise DataError(f"a record has a field of kind {kind}, which no tf.train.Example has")
        if position > len(message):
            raise DataError("a record ends in the middle of a field")
        yield tag >> 3, message[start:position]


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """(the whole number that begins there, where it ends)."""
    value = shift = 0
    while position < len(message):
        byte = message[position]
        value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
        if byte < 128:
            return value, position
    raise DataError("a record ends in the middle of a number")


def _varints(packed: memoryview) -> np.ndarray:
    """All whole numbers of a packed list, int64."""
    data = np.frombuffer(packed, np.uint8).astype(np.uint64)
    last = data < 128
    first = np.flatnonzero(np.concatenate([[True], last[:-1]])) if len(data) else np.zeros(0, np.int64)
    place = np.arange(len(data)) - np.repeat(first, np.diff(np.append(first, len(data))))
    shifted = (data & np.uint64(127)) << (7 * place).astype(np.uint64)
    return np.add.reduceat(shifted, first).astype(np.int64) if len(first) else np.zeros(0, np.int64)


def _labels(of: list[Example]) -> np.ndarray:
    return np.array([one["label"][0] for one in of], np.int32)


def _federated(
    dataset: str, file: Remote, columns: Callable[[list[Example]], dict[str, np.ndarray]], prefix: str = ""
) -> Federated:
    """Both splits of a file's database."""
    path = _unpacked(find(dataset, [file])[file.name])
    with sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True) as database:
        return Federated(*(_split(database, prefix + split, columns) for split in ("train", "test")))


def _split(
    database: sqlite3.Connection, split: str, columns: Callable[[list[Example]], dict[str, np.ndarray]]
) -> Clients:
    names = [
        name
        for (name,) in database.execute(
            "select distinct client_id from examples where split_name = ? order by 1", [split]
        )
    ]
    if not names:
        raise DataError(f"the database has no examples of the split {split!r}")
    query = (
        "select serialized_example_proto from examples where split_name = ? and client_id = ? order by rowid"
    )
    parts = [
        columns([parse(record) for (record,) in database.execute(query, [split, name])]) for name in names
    ]
    return Clients.from_list(parts, ids=names)


def _unpacked(packed: Path) -> Path:
    """The database of a compressed file, in the cache, under a name that says which file it is of."""
    path = cache_folder() / "tff" / f"{packed.name.removesuffix('.lzma')}-{packed.stat().st_size}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        with lzma.open(packed) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        os.replace(partial, path)
    return path
