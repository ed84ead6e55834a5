"""A checkpoint in one encrypted file: the length of the description, the description as JSON, the arrays'
bytes in order.

It is encrypted as it is written and verified as it is read, piece by piece (`fedjax_core.run.encryption`), so
it needs no second copy of the arrays. The round is checked against the folder's name too: an older checkpoint
under a newer name would take the run back unnoticed.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedjax_core.run.encryption import Corrupt, Decryptor, Encryptor, UnusableKey
from fedjax_core.run.snapshot import CheckpointError, Damaged, Leaf, Saved

FILE = "sealed"  # on the disk


def write(folder: Path, key: bytes, body: dict[str, Any], arrays: list[np.ndarray]) -> None:
    """Writes the encrypted file, which is on the disk when this returns."""
    with open(folder / FILE, "xb") as file:
        with Encryptor(file, key) as encrypted:
            text = json.dumps(body).encode()
            encrypted.write(len(text).to_bytes(8, "big") + text)
            for x in arrays:
                encrypted.write(_bytes_of(x))
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, key: bytes) -> Saved:
    """The checkpoint in a folder, every byte verified; raises `Damaged`, and `CheckpointError` where the key
    is not its own."""
    try:
        with open(path / FILE, "rb") as file:
            plain, body = _opened(path, file, key)
            leaves = [
                Leaf(name, dtype, tuple(shape), kind, known)
                for name, dtype, shape, kind, known in body["leaves"]
            ]
            arrays = [np.empty(leaf.shape, leaf.dtype) for leaf in leaves]
            for x in arrays:
                plain.read_into(_bytes_of(x))
            plain.end()
    except (Corrupt, OSError) as error:
        raise Damaged(f"{FILE}: {error}") from error
    return Saved(body["round"], body["about"], leaves, arrays)


def read_metadata(path: Path, key: bytes) -> dict[str, Any]:
    """The description alone, from the beginning of the file; raises `Damaged`."""
    try:
        with open(path / FILE, "rb") as file:
            return _opened(path, file, key)[1]
    except (Corrupt, CheckpointError, OSError) as error:
        raise Damaged(str(error)) from error


def _opened(path: Path, file: BinaryIO, key: bytes) -> tuple[Decryptor, dict[str, Any]]:
    """(the file after its description, the description)."""
    try:
        plain = Decryptor(file, key)
    except UnusableKey as error:
        raise CheckpointError(
            f"the checkpoint in {path} cannot be opened: {error}. Give encrypt= the key that it was written with."
        ) from error
    body: dict[str, Any] = json.loads(plain.read(int.from_bytes(plain.read(8), "big")))
    if path.name != f"{body['round']:08d}":
        raise Corrupt(f"it is the checkpoint of round {body['round']}, under another name")
    return plain, body


def _bytes_of(x: np.ndarray) -> memoryview:
    """The memory of a contiguous array."""
    return x.reshape(-1).view(np.uint8).data
