"""What was measured on this machine, remembered on disk: how many lanes, which rule for a convolution.

    $FEDJAX_CORE_CACHE/measured/<machine>/<digest of the question>.json         one small file an answer, written whole

An answer is only ever about speed, so one that is lost, unreadable or old is measured again, and a disk that cannot be written
to costs nothing but the time. A question names all that the answer depends on besides the machine and the version of JAX. What was
chosen may still decide a result's last bits, so a run keeps the answers it went by (`answers`) in its checkpoints and goes on by them.

>>> import os, tempfile
>>> os.environ["FEDJAX_CORE_CACHE"] = tempfile.mkdtemp()
>>> recall("how many lanes for this step?")
>>> note("how many lanes for this step?", {"lanes": 8})
>>> recall("how many lanes for this step?")
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


_answers: dict[str, Any] = {}  # of this process, which come before those on disk
_before: dict[str, Any] = {}  # of the run that goes on


def answers() -> dict[str, Any]:
    """Every question that was answered in this process, and how."""
    return dict(_answers)


def go_by(answers: dict[str, Any]) -> None:
    """Takes these answers, which a run went by before, before any others."""
    _answers.update(answers)
    _before.clear()
    _before.update(answers)


def before(question: str) -> Any | None:
    """The answer that the run went by before; None in a fresh run."""
    return _before.get(question)


def recall(question: str) -> Any | None:
    """The answer noted for this question on this machine, None where there is none."""
    if question not in _answers:
        found = _read(question)
        if found is None:
            return None
        _answers[question] = found
    return _answers[question]


def _read(question: str) -> Any | None:
    try:
        found = json.loads(_place(question).read_text())
    except (OSError, ValueError):
        return None
    return found["answer"] if isinstance(found, dict) and found.get("question") == question else None


def keep(question: str, answer: Any) -> None:
    """Remembers the answer in this process alone, so that a run keeps it among those it went by."""
    _answers[question] = answer


def note(question: str, answer: Any) -> None:
    """Remembers the answer, which must be plain JSON; says so and goes on where it cannot be written."""
    _answers[question] = answer
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
def keep_programs() -> None:
    """Has JAX keep what it compiles from now on, beside what was measured, unless somebody has said already where or not to."""
    if jax.config.values["jax_compilation_cache_dir"] is None and jax.config.values["jax_enable_compilation_cache"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled" / machine()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@cache
def machine() -> str:
    """A name for this kind of device, processor and version of JAX: where what was measured, or compiled, holds."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    said = sorted({line for line in lines if line.startswith(("flags", "Features", "model name")) or not cpuinfo.exists()})
    device = jax.devices()[0]
    parts = [platform.machine(), *said, str(os.cpu_count()), device.platform, device.device_kind, jax.__version__]
    return f"{device.platform}-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:12]}"


def _place(question: str) -> Path:
    return cache_folder() / "measured" / machine() / f"{hashlib.sha256(question.encode()).hexdigest()[:32]}.json"
