"""The installed code behind a value: one digest for each package whose functions it uses.

What a function was set to is in its closure; what it does is in its file, and in the files that this one imports. So a package
counts by all its files, and by those of the modules that they import. Libraries on which fedjax_core itself depends do not
count: they are trusted by their version.

    package of a function  ─►  its files  ─►  modules that these import  ─►  their files  ─►  {package: SHA-256}

Modules that are imported count where they lie beside the package or are installed. An import by a name made at run time is not seen.

>>> from email.message import Message
>>> is_library(Message.__module__), is_library("jax.numpy")
(True, True)
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from types import FunctionType

TRUSTED = {"jax", "jaxlib", "numpy", "ml_dtypes", "optax", "flax", "fedjax_core", "builtins"}
"""Packages of which a name and a version say enough, beside Python's own."""

ABSENT = "absent"
_INSTALLED = ("site-packages", "dist-packages")


def root(module: str | None) -> str:
    """The top-level package of a module's name."""
    return (module or "").partition(".")[0]


def is_library(module: str | None) -> bool:
    """Whether a module is Python's own, or of a library that is trusted by its version."""
    name = root(module)
    return not name or name in TRUSTED or name in sys.stdlib_module_names


def in_files(function: FunctionType) -> bool:
    """Whether the function's code lies in a file of its own package: not so in a notebook, a script, or text that was run."""
    package = root(function.__module__)
    if package in ("", "__main__"):
        return False
    try:
        written = Path(function.__code__.co_filename).resolve()
        return any(written.is_relative_to(place) for place in _places(package))
    except (OSError, ValueError):
        return False


def digest(package: str) -> str:
    """SHA-256 of a package's files, whatever package it is; `ABSENT` where it is not here."""
    places = _places(package)
    return _package(places)[0] if places else ABSENT


def digests(packages: Iterable[str]) -> dict[str, str]:
    """{package: SHA-256 of its files} of these, and of all that they import, in the order of their names.

    Libraries that are trusted by their version are left out.
    """
    found: dict[str, str] = {}
    places = {name: _places(name) for name in packages if not (is_library(name) or _is_trusted(name) or name == "__main__")}
    asked = set(places)  # of these also when they were installed as libraries are
    while places:
        name, here = places.popitem()
        if not here:  # what is not here decides nothing
            continue
        found[name], imported = _package(here)
        if name in asked or not _are_installed(here):
            new = {other: _imported(other, here) for other in imported - {name} if other not in found and not is_library(other)}
            places |= {other: there for other, there in new.items() if there}
    return dict(sorted(found.items()))


def _imported(name: str, by: list[Path]) -> list[Path]:
    """Where a module lies that a package imports: beside the package, or where packages are installed.

    Not where this process alone looks for modules, such as the folder of its script: at another site that would be another.
    """
    for place in by:
        for there in (place.parent / name, place.parent / f"{name}.py"):
            if there.is_file() or (there.is_dir() and place.parent.name not in _INSTALLED):
                return [there]
    installed = _places(name)
    return installed if _are_installed(installed) and name not in _dependencies() else []


def _package(places: list[Path]) -> tuple[str, frozenset[str]]:
    """(digest of a package's files, top-level names that they import)."""
    whole, imported = hashlib.sha256(), set[str]()
    for place in places:
        for path in _files(place):
            about = path.stat()
            digest, names = _file(str(path), about.st_mtime_ns, about.st_size)
            inside = path.relative_to(place).as_posix() if path != place else path.name
            whole.update(f"{inside}\0{digest}\n".encode())
            imported |= names
    return whole.hexdigest()[:32], frozenset(imported)


def _places(name: str) -> list[Path]:
    """The folders of a package, or the file of a module; none where it is not here."""
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None:  # not imported, or put there by a tool that has no file for it
        for finder in sys.meta_path:
            try:
                spec = finder.find_spec(name, None)
            except (ImportError, ValueError, AttributeError):
                continue
            if spec is not None:
                break
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return sorted({Path(place).resolve() for place in spec.submodule_search_locations if Path(place).is_dir()})
    return [Path(spec.origin).resolve()] if spec.origin and Path(spec.origin).is_file() else []


def _files(place: Path) -> list[Path]:
    """All files of a package but those that Python or an editor made beside them."""
    if place.is_file():
        return [place]
    found = []
    for path in sorted(place.rglob("*"), key=lambda path: path.relative_to(place).as_posix()):
        inside = path.relative_to(place).parts
        odd = any(part == "__pycache__" or part.startswith(".") for part in inside) or inside[-1].endswith((".pyc", "~"))
        if not odd and path.is_file():
            found.append(path)
    return found


@lru_cache(maxsize=65536)
def _file(path: str, mtime_ns: int, size: int) -> tuple[str, frozenset[str]]:
    """(SHA-256 of a file, the top-level names that it imports), as it was at this time."""
    raw = Path(path).read_bytes()
    return hashlib.sha256(raw).hexdigest(), _imports(raw) if path.endswith(".py") else frozenset()


def _imports(source: bytes) -> frozenset[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a file that is never imported may hold anything
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {root(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(root(node.module))
    return frozenset(found)


def _are_installed(places: list[Path]) -> bool:
    """Whether a package lies where pip puts packages."""
    return any(part in _INSTALLED for place in places for part in place.parts)


def _is_trusted(name: str) -> bool:
    """Whether fedjax_core depends on this package itself."""
    return name in _dependencies() and _are_installed(_places(name))


@lru_cache(maxsize=1)
def _dependencies() -> frozenset[str]:
    """The top-level names of all packages that fedjax_core depends on, by whatever way."""
    names, waiting = set[str](), ["fedjax-core"]
    while waiting:
        name = waiting.pop()
        if name in names:
            continue
        names.add(name)
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [_distribution(re.split(r"[^A-Za-z0-9._-]", one, maxsplit=1)[0]) for one in needed]
    tops = importlib.metadata.packages_distributions()
    return frozenset(top for top, owners in tops.items() if any(_distribution(owner) in names for owner in owners))


def _distribution(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
