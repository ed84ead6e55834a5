"""The memory and cores that this process may use: the least of what the machine has and what its container or
batch job allows.

A container shows all memory and cores of its host, and ends a process that takes more than its share. The
share is set by control groups, of version 1 or 2; each of their folders up to the root may set a limit.

>>> 0 < memory_available() <= memory_limit()
True
>>> cores() >= 1
True
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _SELF, _MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")
_SOCKET_LETTERS = 107  # letters that the path of a Unix socket may have
_RAY_LETTERS = len("/fc-12345678/123/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store")


def memory_limit() -> int:
    """Bytes of memory that this process may use at most; 2^62 where the system does not say."""
    return min([_physical(), *(limit for limit, _ in _groups_memory())])


def memory_available() -> int:
    """Bytes of memory that are free, or that the system can free at once, such as its cache of files."""
    return max(0, min([_available(), *(limit - used for limit, used in _groups_memory())]))


def cores() -> int:
    """The number of processor cores that this process may use at once, at least one: by its affinity and its
    container's quota."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([here, *(int(quota) for quota in _quotas())]))


def short_folder() -> Path:
    """A folder for temporary files with a path short enough for Ray's sockets, whose paths may have 107
    letters; raises ValueError where none is.

    It is the usual folder, that of RAY_TMPDIR or TMPDIR, or /tmp where its path is too long.
    """
    usual = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    for place in (usual, Path("/tmp")):
        if (
            len(os.fsencode(place)) + _RAY_LETTERS <= _SOCKET_LETTERS
            and place.is_dir()
            and os.access(place, os.W_OK)
        ):
            return place
    raise ValueError(
        f"Ray cannot start: the sockets in its temporary folder may have paths of {_SOCKET_LETTERS} letters, and TMPDIR, {usual}, is "
        f"longer than {_SOCKET_LETTERS - _RAY_LETTERS}. Name a short folder that can be written in RAY_TMPDIR, such as RAY_TMPDIR=/tmp"
    )


def _physical() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 1 << 62


def _available() -> int:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text("ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, ValueError, KeyError):
        return _physical()


def _groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control groups for a controller such as "memory", from its own to the
    root."""
    try:
        lines = [line.split(":", 2) for line in _SELF.read_text("utf-8").splitlines()]
    except OSError:
        return
    for _, controllers, path in lines:
        if controllers and controller not in controllers.split(","):
            continue
        roots = (
            [_GROUPS / controllers, _GROUPS / controller] if controllers else [_GROUPS, _GROUPS / "unified"]
        )
        for root in dict.fromkeys(roots):
            inner = root / path.lstrip("/")
            # In a container the path may be the host's; the mounted folder is then the container's own group.
            yield from (
                place for place in (inner, *inner.parents) if place.is_relative_to(root) and place.is_dir()
            )


def _groups_memory() -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of each control group that limits memory; the cache of files does not count as
    used."""
    for place in _groups("memory"):
        for most, now, kept in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, used = _number(place / most), _number(place / now)
            if limit is not None and limit < 1 << 60:  # version 1 writes a huge number for no limit
                yield limit, max(0, (used or 0) - _entry(place / "memory.stat", kept))


def _quotas() -> Iterator[float]:
    """Cores of each control group that limits them."""
    for place in _groups("cpu"):
        quota, period = _number(place / "cpu.cfs_quota_us"), _number(place / "cpu.cfs_period_us")
        if quota is None:
            try:
                words = (place / "cpu.max").read_text("ascii").split()
                quota, period = int(words[0]), int(words[1])
            except (OSError, ValueError, IndexError):  # "max" is no limit
                continue
        if quota > 0 and period:
            yield quota / period


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return None


def _entry(path: Path, name: str) -> int:
    try:
        entries = dict(line.split() for line in path.read_text("ascii").splitlines())
        return int(entries.get(name, 0))
    except (OSError, ValueError):
        return 0
