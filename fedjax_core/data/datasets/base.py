"""Finds the files of a data set: in a given folder, in the cache, or by a download whose checksum must match.

    $FEDJAX_CORE_DATA/<data set>/<file>       looked at first: copies made by hand, machines without a network
    $FEDJAX_CORE_CACHE/<data set>/<file>      else ~/.cache/fedjax_core; filled by download

Whatever the way, a file counts only if its sha256 is the one written next to its address in the code: a study
then always runs on the bytes it was written for. A download is written beside its place and moved there once
it is complete and checked.

>>> find("none_needed", [])
{}
"""

import contextlib
import hashlib
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedjax_core.files import cache_folder

DATA = "FEDJAX_CORE_DATA"  # environment: a folder with one sub-folder a data set

_CHUNK = 1 << 16  # bytes read at a time
_TIMEOUT_SECONDS = 30.0


class Remote(NamedTuple):
    """One published file: its address, size and checksum."""

    name: str
    url: str
    sha256: str
    size: int  # bytes; reading stops beyond, so that a wrong address cannot fill the disk


class DataError(RuntimeError):
    """A file that is missing, unreachable, or not the one it should be; says which, and what to do."""


def find(
    dataset: str, files: Sequence[Remote], *, attempts: int = 3, wait_seconds: float = 1.0
) -> dict[str, Path]:
    """The path of each file by name, each of the right sha256; downloads what neither folder holds."""
    return {file.name: _find(dataset, file, files, attempts, wait_seconds) for file in files}


def _find(dataset: str, file: Remote, files: Sequence[Remote], attempts: int, wait_seconds: float) -> Path:
    given = os.environ.get(DATA)
    if given and (path := Path(given).expanduser() / dataset / file.name).is_file():
        _check(path, file)
        return path
    path = cache_folder() / dataset / file.name
    if path.is_file():
        try:
            _check(path, file)
            return path
        except DataError as error:  # ours to replace: a cached copy that went bad
            print(f"{error} Downloading it again.", file=sys.stderr)
            path.unlink()
    try:
        _download(file, path, attempts, wait_seconds)
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise DataError(_unreachable(dataset, file, files, error)) from error
    return path


def _check(path: Path, file: Remote) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{path} is not the file it should be: its sha256 is {digest}, expected {file.sha256}."
        )


def _unreachable(dataset: str, file: Remote, files: Sequence[Remote], error: OSError) -> str:
    folder = f"{os.environ[DATA]}/{dataset}" if os.environ.get(DATA) else f"<folder>/{dataset}"
    set_it = "" if os.environ.get(DATA) else f"set {DATA}=<folder> and "
    wanted = "\n".join(f"  {each.name}  sha256 {each.sha256}" for each in files)
    return (
        f"could not get {file.name} of data set {dataset!r} from {file.url} ({error}).\n"
        f"Without a network, {set_it}put these files into {folder}:\n{wanted}"
    )


def _download(file: Remote, path: Path, attempts: int, wait_seconds: float) -> None:
    """Downloads one file; raises OSError where it cannot be had, DataError where it is another file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{file.name}.")
    os.close(handle)
    try:
        for attempt in range(1, attempts + 1):
            try:
                digest = _fetch(file, Path(partial))
                break
            except OSError as error:
                # asking again will not help
                final = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
                if final or attempt == attempts:
                    raise
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                print(f"{file.name}: {error}; trying again ({attempt} of {attempts - 1})", file=sys.stderr)
                time.sleep(wait_seconds * 2 ** (attempt - 1))
        if digest != file.sha256:
            raise DataError(
                f"{file.url} gave another file than {file.name}: sha256 {digest}, expected {file.sha256}. It was not kept."
            )
        os.replace(partial, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)


def _fetch(file: Remote, partial: Path) -> str:
    """Reads the address into `partial` with a progress line; returns the sha256 of what came."""
    digest, done = hashlib.sha256(), 0
    with urllib.request.urlopen(file.url, timeout=_TIMEOUT_SECONDS) as response, partial.open("wb") as out:
        while chunk := response.read(_CHUNK):
            digest.update(chunk)
            out.write(chunk)
            done += len(chunk)
            if sys.stderr.isatty():
                print(
                    f"\rdownloading {file.name}: {done / 1024:,.0f} of {file.size / 1024:,.0f} KiB",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
            if done > file.size:
                break
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if done < file.size:
        raise OSError(f"the connection ended after {done} of {file.size} bytes")
    return digest.hexdigest()
