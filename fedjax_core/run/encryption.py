"""Encrypts files with AES-256-GCM in chunks, so that a file of any size is written and read piece by piece.

    file   magic | salt [32] | key's name [16] | checksum of these [8] | chunk 0 | chunk 1 | ... | last chunk
    chunk  up to 1 MiB, encrypted, and its tag [16]: nonce = number of the chunk [11 bytes] | 1 for the last one, else 0

A file has a key of its own, by HKDF-SHA256 from the owner's key and the salt, so no nonce is ever used twice.
The number in the nonce reveals exchanged chunks, and the mark of the last one what was cut off or added:
STREAM, of Hoang, Reyhanitabar, Rogaway and Vizard, "Online Authenticated-Encryption and its Nonce-Reuse
Misuse-Resistance", CRYPTO 2015. The key's name is another output of the HKDF: it tells a wrong key from a
damaged file, and does not tell whether two files have the same key.

A key is 64 hexadecimal digits, in a file that others may not read or in an environment variable, and is never
in the run's folder:

    (umask 077; openssl rand -hex 32 > ~/study.key)      encrypt="~/study.key"
    export STUDY_KEY=...                                 encrypt="env:STUDY_KEY"

>>> import io
>>> file, key = io.BytesIO(), bytes(range(32))
>>> with Encryptor(file, key) as encrypted:
...     encrypted.write(b"a secret")
>>> b"secret" in file.getvalue()
False
>>> plain = Decryptor(io.BytesIO(file.getvalue()), key)
>>> plain.read(8), plain.end()
(b'a secret', None)
"""

import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedjax_core.files import read_private

CHUNK = 1 << 20  # plain bytes
_MAGIC, _SALT, _NAME, _SUM, _TAG = b"fedjax_core sealed 1\n", 32, 16, 8, 16
_HEAD = len(_MAGIC) + _SALT + _NAME + _SUM


class UnusableKey(ValueError):
    """The key is missing, is another one, or could have been read by others."""


class Corrupt(Exception):
    """An encrypted file cannot be trusted; the text says why."""


def load_key(source: str | os.PathLike[str], run_dir: Path) -> bytes:
    """The key in a file, or in the environment variable of "env:NAME"; raises `UnusableKey` where it is not
    safe there, or not a key."""
    name = os.fspath(source)
    if name.startswith("env:"):
        text = os.environ.get(name[4:])
        if text is None:
            raise UnusableKey(
                f"encrypt={name!r}, but the environment variable {name[4:]} is not set: export the key in it, or name a file"
            )
        return _parsed(text, f"the environment variable {name[4:]}")
    path = Path(name).expanduser().absolute()
    if path.resolve().is_relative_to(run_dir.resolve()):
        raise UnusableKey(
            f"the key {path} is in the folder of the run, where whoever gets the checkpoints gets it too: keep it elsewhere"
        )
    try:
        text = read_private(path, "the key")[:1000].decode()
    except PermissionError as error:
        raise UnusableKey(f"{error} A new key is for another run_dir.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableKey(
            f"the key {path} cannot be read ({error}). Make one with: (umask 077; openssl rand -hex 32 > {path})"
        ) from error
    return _parsed(text, str(path))


def _parsed(text: str, where: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise UnusableKey(
            f"{where} holds no key, which is 64 hexadecimal digits: make one with `openssl rand -hex 32`"
        )
    return key


class Encryptor:
    """Encrypts what is written to `file`, in a `with`: the last chunk is written at its end, and only if
    there was no error."""

    def __init__(self, file: BinaryIO, key: bytes) -> None:
        salt = os.urandom(_SALT)
        self._cipher, name = _derived(key, salt)
        self._file, self._number, self._buffer = file, 0, bytearray()
        file.write(_with_sum(_MAGIC + salt + name))

    def __enter__(self) -> "Encryptor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._put(self._buffer, last=True)

    def write(self, data: bytes | memoryview) -> None:
        """Adds these bytes."""
        view = memoryview(data)
        # a full chunk may be the last one: it waits for more
        while len(self._buffer) + len(view) > CHUNK:
            missing = CHUNK - len(self._buffer)
            self._put(self._buffer + view[:missing] if self._buffer else view[:missing], last=False)
            view, self._buffer = view[missing:], bytearray()
        self._buffer += view

    def _put(self, data: bytearray | memoryview, *, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number, last), data, None))
        self._number += 1


class Decryptor:
    """Reads what `Encryptor` wrote. Every byte given is verified, and after `end` the whole file is. Raises
    `Corrupt` or `UnusableKey`."""

    def __init__(self, file: BinaryIO, key: bytes) -> None:
        head = file.read(_HEAD)
        if len(head) != _HEAD or head != _with_sum(head[:-_SUM]) or not head.startswith(_MAGIC):
            raise Corrupt("its head is not as it was written")
        self._cipher, name = _derived(key, head[len(_MAGIC) :][:_SALT])
        if name != head[-_SUM - _NAME : -_SUM]:
            raise UnusableKey("it was encrypted with another key")
        self._file, self._number, self._rest = file, 0, memoryview(b"")
        self._next = file.read(CHUNK + _TAG)
        self._ended = False

    def read(self, size: int) -> bytes:
        """The next `size` bytes."""
        content = bytearray(size)
        self.read_into(memoryview(content))
        return bytes(content)

    def read_into(self, room: memoryview) -> None:
        """Fills these bytes with the next ones."""
        while len(room):
            if not len(self._rest):
                self._open()
            n = min(len(room), len(self._rest))
            room[:n], self._rest, room = self._rest[:n], self._rest[n:], room[n:]

    def end(self) -> None:
        """Raises unless all was read, and the file has no more and no less than was written."""
        if not self._ended:
            self._open()
        if len(self._rest) or not self._ended:
            raise Corrupt("it holds more than it should")

    def _open(self) -> None:
        if self._ended:
            raise Corrupt("it holds less than it should")
        chunk, self._next = self._next, self._file.read(CHUNK + _TAG)
        self._ended = not self._next
        try:
            self._rest = memoryview(self._cipher.decrypt(_nonce(self._number, self._ended), chunk, None))
        except InvalidTag as error:
            raise Corrupt(
                f"chunk {self._number} is not as it was written, or what follows it was cut off or added"
            ) from error
        self._number += 1


def _derived(key: bytes, salt: bytes) -> tuple[AESGCM, bytes]:
    """(the cipher of one file, the name of its key)."""
    derived = HKDF(SHA256(), 32 + _NAME, salt, b"fedjax_core sealed 1").derive(key)
    return AESGCM(derived[:32]), derived[32:]


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _with_sum(head: bytes) -> bytes:
    return head + hashlib.sha256(head).digest()[:_SUM]
