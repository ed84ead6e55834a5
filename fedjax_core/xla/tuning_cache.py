"""Autotuning cache on disk: what was measured on this machine, such as the number of lanes or the form of a
convolution.

    $FEDJAX_CORE_CACHE/measured/<machine>/<digest of the question>.json         one small file an entry, written whole

Entries affect speed only: one that is missing, damaged or outdated is measured again, and an unwritable disk
is not an error. A question names all that its answer depends on besides the machine and the version of JAX.
What was chosen may still decide a result's last bits, so a run saves the entries it used (`entries`) in its
checkpoints, and a resumed run adopts them.

>>> import os, tempfile
>>> os.environ["FEDJAX_CORE_CACHE"] = tempfile.mkdtemp()
>>> lookup("how many lanes for this step?")
>>> store("how many lanes for this step?", {"lanes": 8})
>>> lookup("how many lanes for this step?")
{'lanes': 8}
"""

import hashlib
import json
import logging
import os
import platform
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import jax

from fedjax_core.files import cache_folder

log = logging.getLogger("fedjax_core")


_entries: dict[str, Any] = {}  # of this process, which come before those on disk
_before: dict[str, Any] = {}  # of the run that goes on


def entries() -> dict[str, Any]:
    """Every question that was answered in this process, with its answer."""
    return dict(_entries)


def adopt(entries: dict[str, Any]) -> None:
    """Takes these answers, which a run went by before, before any others."""
    _entries.update(entries)
    _before.clear()
    _before.update(entries)


def before(question: str) -> Any | None:
    """The answer that the run went by before; None in a fresh run."""
    return _before.get(question)


def lookup(question: str) -> Any | None:
    """The answer stored for this question on this machine; None where there is none."""
    if question not in _entries:
        answer = _read(question)
        if answer is None:
            return None
        _entries[question] = answer
    return _entries[question]


def _read(question: str) -> Any | None:
    try:
        entry = json.loads(_place(question).read_text())
    except (OSError, ValueError):
        return None
    return entry["answer"] if isinstance(entry, dict) and entry.get("question") == question else None


def keep(question: str, answer: Any) -> None:
    """Remembers the answer in this process alone, so that a run keeps it among those it went by."""
    _entries[question] = answer


def store(question: str, answer: Any) -> None:
    """Remembers the answer, which must be plain JSON; says so and goes on where it cannot be written."""
    _entries[question] = answer
    place = _place(question)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(handle, "w") as file:
            json.dump({"question": question, "answer": answer}, file)
        os.replace(fresh, place)
    except OSError as error:
        log.info("what was measured is not remembered: %s", error)


@cache
def enable_compilation_cache() -> None:
    """Has JAX keep compiled programs beside what was measured, unless its own cache is configured already."""
    if (
        jax.config.values["jax_compilation_cache_dir"] is None
        and jax.config.values["jax_enable_compilation_cache"]
    ):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled" / machine()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@cache
def machine() -> str:
    """A name for this kind of device, processor and version of JAX, for which measurements and compiled
    programs hold."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    cpu_lines = sorted(
        {
            line
            for line in lines
            if line.startswith(("flags", "Features", "model name")) or not cpuinfo.exists()
        }
    )
    device = jax.devices()[0]
    parts = [
        platform.machine(),
        *cpu_lines,
        str(os.cpu_count()),
        device.platform,
        device.device_kind,
        jax.__version__,
    ]
    return f"{device.platform}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}"


def _place(question: str) -> Path:
    return (
        cache_folder() / "measured" / machine() / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"
    )
