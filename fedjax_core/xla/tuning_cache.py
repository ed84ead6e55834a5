"""The autotuning cache on disk: measurements on this machine, such as the best number of lanes or form of a
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


_entries: dict[str, Any] = {}  # those of this process, used before those on disk
_before: dict[str, Any] = {}  # those of the run that is resumed


def entries() -> dict[str, Any]:
    """{question: answer} of this process."""
    return dict(_entries)


def adopt(entries: dict[str, Any]) -> None:
    """Uses these answers, those of a run so far, before any others."""
    _entries.update(entries)
    _before.clear()
    _before.update(entries)


def before(question: str) -> Any | None:
    """The answer that the run used before it was resumed; None in a fresh run."""
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
    """Stores the answer in this process only, so that a run saves it among those it used."""
    _entries[question] = answer


def store(question: str, answer: Any) -> None:
    """Stores the answer, which must be plain JSON; logs it and goes on if it cannot be written."""
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
    """Makes JAX store compiled programs beside the measurements, unless its own cache is configured
    already."""
    if (
        jax.config.values["jax_compilation_cache_dir"] is None
        and jax.config.values["jax_enable_compilation_cache"]
    ):
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled" / machine()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@cache
def machine() -> str:
    """A name for this kind of device, processor and version of JAX, which measurements and compiled programs
    are valid for."""
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
