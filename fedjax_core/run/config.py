"""A run's configuration as dotted names and plain values, so that changes are found by name.

>>> def scaled(factor):
...     return lambda x: factor * x + 1
>>> difference(describe({"f": scaled(0.1)}), describe({"f": scaled(0.2)}))
['f.closure.factor: 0.1 -> 0.2']
>>> describe({"f": scaled(0.1)}) == describe({"f": scaled(0.1)})
True
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

import jax

from fedjax_core.describe import Scalar as Scalar
from fedjax_core.describe import describe as describe


def difference(saved: Mapping[str, Scalar], now: Mapping[str, Scalar]) -> list[str]:
    """The changes, a readable line each: `name: 0.1 -> 0.2`."""
    absent = "(absent)"
    names = [
        name
        for name in {**saved, **now}
        if (name in saved) != (name in now) or not _same(saved[name], now[name])
    ]
    return [
        f"{name}: {repr(saved[name]) if name in saved else absent} -> {repr(now[name]) if name in now else absent}"
        for name in names
    ]


def without_code(described: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The description without what another version of Python compiles differently from the same source."""
    return {
        name: x for name, x in described.items() if not name.endswith(".code") and ".constants[" not in name
    }


def versions() -> dict[str, Scalar]:
    """The versions and the device, on which the last bits of a result depend besides the configuration."""
    versions_of: dict[str, Scalar] = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("jax", "jaxlib", "numpy", "optax", "flax", "fedjax-core"):
        try:
            versions_of[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout
            versions_of[package] = None
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        source.update(path.read_bytes())
    versions_of["fedjax-core source"] = source.hexdigest()[:16]
    device = jax.devices()[0]
    return {**versions_of, "devices": f"{jax.device_count()} x {device.platform} {device.device_kind}"}


def _same(a: Scalar, b: Scalar) -> bool:
    return type(a) is type(b) and a == b
