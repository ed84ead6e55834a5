"""Flattens any value to dotted names and plain values, and hashes that, so that two processes know that they
mean the same.

An optax optimiser, a task or an algorithm is a tuple of functions: what was set is in their closures,
defaults and constants. So `describe` walks values and functions alike, and gives the same answer in another
process: no addresses, no order of hashing.

>>> def scaled(factor):
...     return lambda x: factor * x + 1
>>> describe({"f": scaled(0.1)})["f.closure.factor"]
0.1
>>> identity({"f": scaled(0.1)}) == identity({"f": scaled(0.1)}), identity({"f": scaled(0.1)}) == identity({"f": scaled(0.2)})
(True, False)
"""

import copyreg
import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import json
import logging
import math
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_core import places, sources

Scalar = bool | int | float | str | None

_DEPTH = 40
# Libraries whose functions are identified by name.
_NAMED = {
    "jax",
    "jaxlib",
    "numpy",
    "builtins",
    "ml_dtypes",
    "functools",
    "typing",
}
_LINKS = {"parent", "name", "scope"}  # attributes of a Flax module that link to where it is used
# Libraries whose functions count by what they close over; `versions` reports changed code.
_VERSIONED = {
    "fedjax_core",
    "optax",
    "flax",
}


def describe(value: Any) -> dict[str, Scalar]:
    """The value flattened, {dotted name: JSON scalar}: equal for equal builds in any process, else different
    under a telling name.

    Functions count by their names, the values they close over and their defaults; a user's own also by their
    code, its constants, and the plain values and functions of their file that they mention. Other objects
    count by their public attributes, those of a user's class by all attributes and methods, those without
    attributes by the parts of a copy, arrays by a digest."""
    walk = _Walk()
    walk.visit("", value, 0)
    return walk.found


def identity(value: Any) -> str:
    """32 hexadecimal digits, equal in two processes that describe the value alike and have the same code for
    it.

    Code counts by the files of its package and those that they import (sources.py); code in no such file,
    such as a notebook's, by its instructions, which differ between versions of Python. What fedjax_core's own
    functions close over counts by its place in them, not by its name (places.py), and its code by its
    version, which the caller adds.
    """
    walk = _Walk(by_files=True)
    walk.visit("", value, 0)
    described = walk.found | {
        f"files of {name}": digest for name, digest in sources.digests(walk.packages).items()
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]


def code_of(value: Any) -> dict[str, str]:
    """{package: digest of its files} of all packages whose functions and classes the value uses, and of what
    these import."""
    walk = _Walk(by_files=True)
    walk.visit("", value, 0)
    return sources.digests(walk.packages)


def digest(array: np.ndarray) -> str:
    """SHA-256 of the array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


class _Walk:
    """One walk over a value; what was met before is named by where, which ends cycles and keeps shared parts
    short."""

    def __init__(self, by_files: bool = False) -> None:
        """`by_files`: leaves out code in a package's files, for a caller who takes the files of `packages`
        instead."""
        self.found: dict[str, Scalar] = {}
        self.packages: set[str] = set()
        self._by_files = by_files
        self._met: dict[int, tuple[str, Any]] = {}  # holds the objects, so that an id is not used twice

    def visit(self, name: str, value: Any, depth: int) -> None:
        self._note_package(value)
        plain = _plain(value)
        methods = self._methods(value) if isinstance(value, type) else []
        if (plain is not None or value is None) and not methods:
            self.found[name or "value"] = plain
            return
        if id(value) in self._met:
            self.found[name] = f"the same as {self._met[id(value)][0] or 'the whole'}"
            return
        self._met[id(value)] = name, value
        kind = self._kind(value) if plain is None else plain
        if depth >= _DEPTH:
            self.found[name] = f"{kind}, too deep to describe"
            return
        parts = methods or self._parts(value)
        if kind not in ("dict", "list", "tuple") or not parts:
            self.found[name or "value"] = kind
        for part, inner in parts:
            self.visit(
                f"{name}{part}" if part.startswith("[") or not name else f"{name}.{part}", inner, depth + 1
            )

    def _kind(self, value: Any) -> str:
        return (
            f"{value.__module__}.{places.standing(value)}"
            if self._by_files and _is_ours(value)
            else _kind(value)
        )

    def _note_package(self, value: Any) -> None:
        module = value.__name__ if isinstance(value, types.ModuleType) else None
        if isinstance(value, (type, types.FunctionType)):
            module = value.__module__
        self.packages.add(sources.root(module or type(value).__module__))

    def _parts(self, value: Any) -> list[tuple[str, Any]]:
        """(name, value) of all that makes this one what it is."""
        if isinstance(value, types.FunctionType):
            return _function_parts(value, by_files=self._by_files)
        return self._plain_parts(value) + self._methods(type(value))

    def _methods(self, of: type) -> list[tuple[str, Any]]:
        """The methods of a user's own class, which are its code, and what stands beside them in the class."""
        members: dict[str, Any] = {}
        whole = _is_own(of)
        for kind in of.__mro__:
            if sources.is_library(kind.__module__):
                continue
            for name, method in vars(kind).items():
                method = getattr(method, "__func__", getattr(method, "fget", method))
                if (
                    isinstance(method, types.FunctionType)
                    and not sources.is_library(method.__module__)
                    and not _generated(kind, name)
                ):
                    members.setdefault(f"methods.{name}", method)
                elif not (
                    name.startswith("__" if whole else "_")
                    or name in _LINKS
                    or inspect.isroutine(method)
                    or hasattr(method, "__get__")
                ):
                    members.setdefault(f"class.{name}", method)
        return sorted(members.items())

    def _plain_parts(self, value: Any) -> list[tuple[str, Any]]:
        if isinstance(value, functools.partial):
            return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
        if isinstance(value, types.MethodType):
            return [("func", value.__func__), ("self", value.__self__)]
        # A method of an object, such as {1: 2}.get.
        if isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType)):
            return [("func", value.__name__), ("self", value.__self__)]
        if (
            _root(value) in _NAMED
            and callable(value)
            and hasattr(value, "__name__")
            and not isinstance(value, Mapping)
        ):
            wrapped = getattr(value, "__wrapped__", None)  # jax.jit(f) is f
            return [("wrapped", wrapped)] if wrapped is not None else []
        if isinstance(value, Mapping):
            return (
                sorted((str(k), v) for k, v in value.items())
                if _sortable(value)
                else [(str(k), v) for k, v in value.items()]
            )
        if isinstance(value, tuple) and hasattr(value, "_fields"):  # what it was made by says most
            return sorted(zip(value._fields, value, strict=True), key=lambda field: field[0] != "settings")
        if isinstance(value, (list, tuple)):
            return [(f"[{i}]", v) for i, v in enumerate(value)]
        if isinstance(value, (set, frozenset)):
            return [(f"[{i}]", v) for i, v in enumerate(sorted(value, key=repr))]
        if dataclasses.is_dataclass(value):
            # Of a library's, fields that do not print are left out, as they are caches and links to parents (Flax modules),
            # not settings.
            module, own = _is_module(type(value)), not sources.is_library(type(value).__module__)
            fields = [
                f.name
                for f in dataclasses.fields(value)
                if f.repr or (own and not (module and f.name in _LINKS))
            ]
            return [(name, getattr(value, name)) for name in fields if hasattr(value, name)]
        if hasattr(value, "__wrapped__"):
            return [("wrapped", value.__wrapped__)]
        own = _is_own(type(value), "abc", "typing")
        return sorted(
            (k, v) for k, v in _attributes(value).items() if own or not k.startswith("_")
        ) or _copied(value)


def _is_own(kind: type, *but: str) -> bool:
    """Whether it is a user's own class, with no bases but such ones and classes of these modules."""
    return all(
        one is object or one.__module__ in but or not sources.is_library(one.__module__)
        for one in kind.__mro__
    )


def _is_module(kind: type) -> bool:
    """Whether it is a Flax module."""
    return any(sources.root(one.__module__) == "flax" for one in kind.__mro__)


def _attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object, also those that its class lists (`__slots__`)."""
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for one in slots for name in ([one] if isinstance(one, str) else one)]
    slotted = {
        name: getattr(value, name) for name in names if not name.startswith("__") and hasattr(value, name)
    }
    return slotted | getattr(value, "__dict__", {})


def _copied(value: Any) -> list[tuple[str, Any]]:
    """The parts from which a copy of the object would be made, as for a date, a path or a random generator;
    empty where it cannot be copied."""
    reduce: Any = copyreg.dispatch_table.get(type(value))
    try:
        made = value.__reduce_ex__(2) if reduce is None else reduce(value)
    except Exception:  # its own code says that it cannot, by whatever error
        return []
    if isinstance(made, str):
        return [("copied", made)]
    by, *rest = made
    parts = [
        ("by", f"{by.__module__}.{by.__qualname__}"),
        *zip(("args", "state", "items", "pairs"), rest, strict=False),
    ]
    return [
        (name, list(part) if name in ("items", "pairs") else part) for name, part in parts if part is not None
    ]


def _plain(value: Any) -> Scalar:
    """The value as one JSON scalar, None where it has parts (or is None)."""
    if isinstance(value, enum.Enum):
        return f"{_kind(value)}.{value.name}"
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        # nan differs from itself, and JSON has no inf
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, str):
        return value
    if isinstance(value, (complex, bytes, types.EllipsisType, range, slice, np.dtype)):
        return repr(value)
    bound = isinstance(value, types.BuiltinFunctionType) and not isinstance(
        value.__self__, (types.ModuleType, type, types.NoneType)
    )
    if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, np.ufunc)) and not bound:
        return f"{getattr(value, '__module__', None) or 'module'}.{getattr(value, '__qualname__', value.__name__)}"
    if isinstance(value, (np.ndarray, jax.Array)):
        return _array(value)
    if isinstance(value, logging.Logger):  # its handlers differ by process
        return f"{_kind(value)} {value.name}"
    fingerprint = getattr(value, "fingerprint", None)
    if isinstance(value, types.CodeType) or not callable(fingerprint):
        return None
    return f"{_kind(value)} {fingerprint()}"


def _array(value: np.ndarray | jax.Array) -> Scalar:
    if isinstance(value, jax.core.Tracer):
        return f"traced {value.dtype}{list(value.shape)}"
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return f"key<{jax.random.key_impl(value)}> {np.asarray(jax.random.key_data(value)).tolist()}"
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind in "biuf":
        return _plain(array[()])
    contents = (
        hashlib.sha256(repr(array.tolist()).encode()).hexdigest()
        if array.dtype.kind in "OUSM"
        else digest(array)
    )
    return f"{array.dtype}{list(array.shape)} {contents[:16]}"


def _kind(value: Any) -> str:
    """module.name of a function, or of another value's type."""
    if isinstance(value, types.FunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    if _root(value) in _NAMED and callable(value) and hasattr(value, "__name__"):  # jnp.sin, jax.nn.relu
        return f"{getattr(value, '__module__', None) or kind.__module__}.{value.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def _root(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _generated(kind: type, name: str) -> bool:
    """Whether Python makes this method of a dataclass or a NamedTuple, from its fields."""
    made = name.startswith("__") and name != "__call__" and name != "__post_init__"
    return made and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"))


def _function_parts(f: types.FunctionType, by_files: bool = False) -> list[tuple[str, Any]]:
    if (f.__module__ or "").partition(".")[0] in _NAMED:
        return [("wrapped", f.__wrapped__)] if hasattr(f, "__wrapped__") else []
    if by_files and _is_ours(f):
        values = [*places.captured(f), *(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
        return [(f"[{i}]", value) for i, value in enumerate(values)]
    parts: list[tuple[str, Any]] = [(f"closure.{k}", v) for k, v in _cells(f)]
    names = f.__code__.co_varnames[: f.__code__.co_argcount]
    defaults = f.__defaults__ or ()
    parts += [
        (f"defaults.{k}", v) for k, v in zip(names[len(names) - len(defaults) :], defaults, strict=True)
    ]
    parts += [(f"defaults.{k}", v) for k, v in sorted((f.__kwdefaults__ or {}).items())]
    if sources.root(f.__module__) in _VERSIONED:
        return parts
    mentioned, constants, listing = _read_code(f.__code__, f.__doc__)
    for name in sorted(mentioned):
        other = f.__globals__.get(name)
        near = _is_function(other) and other.__module__ == f.__module__
        # The files of its package count.
        far = by_files and isinstance(other, (types.ModuleType, types.FunctionType, type))
        if near or far or isinstance(other, (bool, int, float, str, np.ndarray)):
            parts.append((f"globals.{name}", other))
    # The files say everything except which of their functions it is.
    if by_files and sources.in_files(f):
        return [*parts, ("at", places.beginning(f.__code__))]
    parts += [(f"constants[{i}]", x) for i, x in enumerate(constants)]
    return [*parts, ("code", hashlib.sha256(listing.encode()).hexdigest()[:16])]


def _cells(f: types.FunctionType) -> list[tuple[str, Any]]:
    cells = []
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            cells.append((name, cell.cell_contents))
        except ValueError:  # a name not bound yet
            cells.append((name, "unbound"))
    return cells


def _read_code(code: types.CodeType, doc: str | None) -> tuple[set[str], list[Any], str]:
    """(names it mentions, its constants, its instructions in words): unmoved by comments, line numbers and
    docstrings."""
    mentioned, constants, lines = set(code.co_names), [], []
    for op in dis.get_instructions(code):
        if isinstance(op.argval, types.CodeType):  # a function within
            inner = _read_code(op.argval, _doc_of(op.argval))
            mentioned |= inner[0]
            constants += inner[1]
            lines.append(inner[2])
        elif op.opname in ("LOAD_CONST", "RETURN_CONST", "LOAD_SMALL_INT", "KW_NAMES"):
            lines.append(op.opname)
            if (
                isinstance(op.argval, (bool, int, float, complex, str, bytes, tuple, frozenset))
                and op.argval != doc
            ):
                constants.append(op.argval)
        else:
            lines.append(
                f"{op.opname} {op.argval if isinstance(op.argval, (str, int, tuple)) else op.argrepr}"
            )
    return mentioned, constants, "\n".join(lines)


def _doc_of(code: types.CodeType) -> str | None:
    return code.co_consts[0] if code.co_consts and isinstance(code.co_consts[0], str) else None


def _is_ours(value: Any) -> bool:
    """Whether it is a function of fedjax_core."""
    return isinstance(value, types.FunctionType) and sources.root(value.__module__) == "fedjax_core"


def _is_function(value: Any) -> bool:
    return isinstance(value, types.FunctionType)


def _sortable(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) for k in value)
