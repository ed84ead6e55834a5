"""What a process may use is the least of what its machine has and what its container gives, in either version
of control groups."""

import os
import tempfile
from pathlib import Path

import pytest

from fedjax_core import machine

GB = 1 << 30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes a system with these lines of /proc/self/cgroup and these files below /sys/fs/cgroup."""

    def make(lines, files, meminfo="MemFree: 1 kB\nMemAvailable: 4194304 kB\n"):
        for path, text in files.items():
            (tmp_path / "cgroup" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / path).write_text(f"{text}\n")
        (tmp_path / "self").write_text("".join(f"{line}\n" for line in lines))
        (tmp_path / "meminfo").write_text(meminfo)
        monkeypatch.setattr(machine, "_GROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(machine, "_SELF", tmp_path / "self")
        monkeypatch.setattr(machine, "_MEMINFO", tmp_path / "meminfo")
        monkeypatch.setattr(machine, "_physical", lambda: 64 * GB)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    return make


SYSTEMS = {
    "none": ([], {}, 64 * GB, 4 * GB, 8),
    "second version": (
        ["0::/job/step"],
        {
            "job/memory.max": 6 * GB, "job/memory.current": 5 * GB, "job/memory.stat": f"anon 1\ninactive_file {2 * GB}",
            "job/step/memory.max": "max", "job/step/memory.current": GB, "job/cpu.max": "250000 100000", "job/step/cpu.max": "max 100000",
        },
        6 * GB, 3 * GB, 2,
    ),
    "second version, seen from within a container": (["0::/not/here"], {"memory.max": GB, "memory.current": GB // 2}, GB, GB // 2, 8),
    "first version": (
        ["5:memory:/docker/x", "3:cpu,cpuacct:/docker/x", "0::/"],
        {
            "memory/docker/x/memory.limit_in_bytes": 2 * GB, "memory/docker/x/memory.usage_in_bytes": GB,
            "memory/docker/x/memory.stat": "total_inactive_file 0", "memory/memory.limit_in_bytes": 9223372036854771712,
            "cpu,cpuacct/docker/x/cpu.cfs_quota_us": 50000, "cpu,cpuacct/docker/x/cpu.cfs_period_us": 100000,
        },
        2 * GB, GB, 1,
    ),
    "first version without limits": (
        ["5:memory:/", "3:cpu:/"],
        {"memory/memory.limit_in_bytes": 9223372036854771712, "cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000},
        64 * GB, 4 * GB, 8,
    ),
    "a limit above the machine's": (["0::/"], {"memory.max": 100 * GB, "memory.current": GB}, 64 * GB, 4 * GB, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_least_of_machine_and_container_counts(name, groups):
    lines, files, limit, available, cores = SYSTEMS[name]
    groups(lines, files)
    assert (machine.memory_limit(), machine.memory_available(), machine.cores()) == (limit, available, cores)


def test_a_system_that_says_nothing_has_what_it_has(groups, tmp_path):
    groups([], {})
    (tmp_path / "self").unlink()
    (tmp_path / "meminfo").unlink()
    assert machine.memory_limit() == machine.memory_available() == 64 * GB


def test_a_temporary_folder_is_short_enough_for_rays_sockets(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("a" * 60)))
    assert machine.short_folder() == Path("/tmp")
    monkeypatch.setenv("RAY_TMPDIR", "/dev/shm")
    assert machine.short_folder() == Path("/dev/shm")
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(
        ValueError, match=r"TMPDIR, /.*aaa, is longer than \d+. Name a short folder .* in RAY_TMPDIR"
    ):
        machine.short_folder()
