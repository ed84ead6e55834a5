"""Digests of the installed code behind a value: one for each package whose functions it uses.

A function's settings are in its closure; its code is in its file, and in the files that this one imports. So
a package counts with all its files, and with those of the modules that they import. Libraries that
fedjax_core itself depends on do not count: they are trusted by their version.

    package of a function  ─►  its files  ─►  modules that these import  ─►  their files  ─►  {package: SHA-256}

Imported modules count if they are beside the package or installed. So does a file beside it with the name of
one of Python's own modules or of a trusted library, as Python may import it instead. An import by a name made
at run time is not seen.

>>> from email.message import Message
>>> is_library(Message.__module__), is_library("jax.numpy")
(True, True)
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import marshal
import os
import re
import sys
import sysconfig
from collections.abc import Iterable
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import FunctionType

TRUSTED = {"jax", "jaxlib", "numpy", "ml_dtypes", "optax", "flax", "fedjax_core", "builtins"}
"""Packages that are identified by name and version, beside Python's own."""

_OWN = {"", "builtins", "fedjax_core"}  # wherever they are: this is their code
# Python and JAX import these wherever they are found
_UNASKED = {
    "sitecustomize",
    "usercustomize",
    "jax_plugins",
}
_CODE = (".py", ".pyc", ".so", ".pyd")

ABSENT = "absent"
_INSTALLED = ("site-packages", "dist-packages")


def root(module: str | None) -> str:
    """The top-level package of a module's name."""
    return (module or "").partition(".")[0]


def is_library(module: str | None) -> bool:
    """Whether a module is Python's own, or of a library that is trusted by its version: by its name and its
    place."""
    name = root(module)
    if name in _OWN:
        return True
    if not (name in TRUSTED or name in sys.stdlib_module_names):
        return False
    spec = _spec(name)
    return spec is None or spec.origin is None or _at_home(spec.origin, name in sys.stdlib_module_names)


@lru_cache(maxsize=4096)
def _at_home(origin: str, python: bool) -> bool:
    """Whether a file is where Python has its own modules, or where packages are installed."""
    path, installed = Path(origin), any(part in _INSTALLED for part in Path(origin).parts)
    if not python:
        return installed
    homes = {
        Path(os.__file__).parent,
        *(Path(sysconfig.get_path(which)) for which in ("stdlib", "platstdlib")),
    }
    homes |= {home.resolve() for home in homes}
    return origin in ("built-in", "frozen") or (
        not installed and any(path.is_relative_to(home) for home in homes)
    )


def in_files(function: FunctionType) -> bool:
    """Whether the function's code is in a file of its own package: not in a notebook, a script, or text that
    was run."""
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
    """{package: SHA-256 of its files} of these packages and of all that they import, in the order of their
    names.

    Libraries that are trusted by their version are left out.
    """
    digests_of: dict[str, str] = {}
    places = {
        name: _places(name)
        for name in packages
        if not (is_library(name) or _is_trusted(name) or name == "__main__")
    }
    requested = set(places)  # these count even if installed as libraries
    while places:
        name, here = places.popitem()
        if not here:  # what is not here decides nothing
            continue
        digests_of[name], imported = _package(here)
        if name in requested or not _are_installed(here):
            new = {
                other: _imported(other, here) for other in imported - {name} if not is_library(other)
            } | _shadows(here)
            places |= {other: there for other, there in new.items() if there and other not in digests_of}
    return dict(sorted(digests_of.items()))


def _imported(name: str, by: list[Path]) -> list[Path]:
    """The place of a module that a package imports: beside the package, or where packages are installed.

    Places where only this process looks for modules, such as the folder of its script, do not count: at
    another site they differ."""
    for folder in (place.parent for place in by if place.parent.name not in _INSTALLED):
        files = [path for path in sorted(folder.glob(f"{name}.*")) if path.suffix in _CODE and path.is_file()]
        if paths := [path for path in (folder / name, *files) if path.is_dir() or path in files]:
            return paths
    installed = _places(name)
    return installed if _are_installed(installed) and name not in _dependencies() else []


def _shadows(by: list[Path]) -> dict[str, list[Path]]:
    """Modules beside a package with the names of trusted libraries, which Python may import instead, and
    those that Python runs by itself."""
    shadows: dict[str, list[Path]] = {}
    for folder in sorted({place.parent for place in by if place.parent.name not in _INSTALLED}):
        for path in sorted(folder.iterdir()):
            name = path.name.partition(".")[0]
            trusted = name in TRUSTED or name in sys.stdlib_module_names or name in _dependencies()
            module = (
                (path.suffix in _CODE and path.is_file())
                or (path / "__init__.py").is_file()
                or (name in _UNASKED and path.is_dir())
            )
            if (trusted or name in _UNASKED) and name not in _OWN and module:
                shadows.setdefault(name, []).append(path)
    return shadows


def _package(places: list[Path]) -> tuple[str, frozenset[str]]:
    """(digest of a package's files, top-level names that they import)."""
    whole, imported = hashlib.sha256(), set[str]()
    for place in places:
        for path in _files(place):
            status = path.stat()
            digest, names = _file(str(path), status.st_mtime_ns, status.st_size, _changed(_compiled(path)))
            inside = path.relative_to(place).as_posix() if path != place else path.name
            whole.update(f"{inside}\0{digest}\n".encode())
            imported |= names
    return whole.hexdigest()[:32], frozenset(imported)


def _places(name: str) -> list[Path]:
    """The folders of a package, or the file of a module; none where it is not here."""
    spec = _spec(name)
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return sorted(
            {Path(place).resolve() for place in spec.submodule_search_locations if Path(place).is_dir()}
        )
    return [Path(spec.origin).resolve()] if spec.origin and Path(spec.origin).is_file() else []


def _spec(name: str) -> ModuleSpec | None:
    """The spec by which Python imports it; None where it is not here."""
    spec: ModuleSpec | None = getattr(sys.modules.get(name), "__spec__", None)
    if spec is None:  # not imported, or from a tool that has no file for it
        for finder in sys.meta_path:
            try:
                spec = finder.find_spec(name, None)
            except (ImportError, ValueError, AttributeError):
                continue
            if spec is not None:
                break
    return spec


def _files(place: Path) -> list[Path]:
    """All files of a package but those that Python or an editor made beside them; also those in linked
    folders."""
    if place.is_file():
        return [place]
    files = []
    for folder, inner, names in os.walk(place, followlinks=True):
        above = os.path.realpath(folder)
        inner[:] = [
            name
            for name in inner
            if not (name == "__pycache__" or name.startswith(".")) and not _within(above, folder, name)
        ]
        paths = [Path(folder, name) for name in names if not (name.startswith(".") or name.endswith("~"))]
        files += [path for path in paths if path.is_file()]
    return sorted(files, key=lambda path: path.relative_to(place).as_posix())


def _within(above: str, folder: str, name: str) -> bool:
    """Whether a folder in this one links to this one or to one above it: its files would have no end."""
    real = os.path.realpath(os.path.join(folder, name))
    return os.path.commonpath([above, real]) == real


@lru_cache(maxsize=65536)
def _file(path: str, mtime_ns: int, size: int, compiled: int) -> tuple[str, frozenset[str]]:
    """(SHA-256 of a file, the top-level names that it imports); the times of the file and of its compiled
    form are part of the cache's key."""
    raw = Path(path).read_bytes()
    whole = hashlib.sha256(raw)
    if not path.endswith(".py"):
        return whole.hexdigest(), frozenset()
    whole.update(_other_code(path, raw, mtime_ns))
    return whole.hexdigest(), _imports(raw)


def _compiled(path: Path) -> Path | None:
    """The path of the compiled form of a source file; None for other files."""
    try:
        return Path(importlib.util.cache_from_source(path)) if path.suffix == ".py" else None
    except NotImplementedError:  # this Python stores none
        return None


def _changed(path: Path | None) -> int:
    """The time at which a file was written; 0 where there is none."""
    return path.stat().st_mtime_ns if path is not None and path.is_file() else 0


def _other_code(path: str, raw: bytes, mtime_ns: int) -> bytes:
    """The compiled file that Python would run instead of this source, if that is other code; else empty."""
    compiled = _compiled(Path(path))
    if compiled is None or not compiled.is_file():
        return b""
    content = compiled.read_bytes()
    flags, key, code = int.from_bytes(content[4:8], "little"), content[8:16], content[16:]
    if flags & 1:  # for a source with this hash, which Python does not always compare
        runs = not flags & 2 or key == importlib.util.source_hash(raw)
    else:
        runs = key == b"".join((x & 0xFFFFFFFF).to_bytes(4, "little") for x in (mtime_ns // 10**9, len(raw)))
    if content[:4] != importlib.util.MAGIC_NUMBER or not runs:
        return b""
    try:
        return b"" if marshal.loads(code) == compile(raw, path, "exec", dont_inherit=True) else content
    except (ValueError, EOFError, TypeError, SyntaxError):
        return content


def _imports(source: bytes) -> frozenset[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a file that is never imported may hold anything
        return frozenset()
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {root(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(root(node.module))
    return frozenset(modules)


def _are_installed(places: list[Path]) -> bool:
    """Whether a package is where pip puts packages."""
    return any(part in _INSTALLED for place in places for part in place.parts)


def _is_trusted(name: str) -> bool:
    """Whether fedjax_core depends on this package itself."""
    return name in _dependencies() and _are_installed(_places(name))


@lru_cache(maxsize=1)
def _dependencies() -> frozenset[str]:
    """The top-level names of all packages that fedjax_core depends on, directly or not, and that no other
    package installs files for."""
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
    return frozenset(
        top for top, owners in tops.items() if all(_distribution(owner) in names for owner in owners)
    )


def _distribution(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
