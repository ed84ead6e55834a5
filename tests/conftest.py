"""Strict settings for every test, eight fake devices, `--slow`, and where the real data lies."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

# Before JAX is imported: it reads them once.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from fedjax_core.lanes import tune
from fedjax_core.xla import tuning_cache
from tests import slow

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

tune._BUDGET_SECONDS = (
    0.0  # lanes by the size of the model: measuring takes seconds, and differs from machine to machine
)

# A shell starts what runs in its background with Ctrl-C ignored, which processes of the tests would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
STARTED, FOLDERS, KNOWN = pytest.StashKey[float](), pytest.StashKey[set[str]](), pytest.StashKey[bool]()
BEGAN, COST = pytest.StashKey[float](), "processor seconds"
LEFT_OUT = "left out: no time left"
KEPT_MB = 3000  # of a process: a worker grew to 5 GB


# Compiling is most of a test's time: keeping what was compiled takes tests/models from 34 s to 13 s the second
# time (2-core x86). The key of an entry has the program and the flags, but not the processor.
for name, value in {
    "jax_compilation_cache_dir": str(REPOSITORY / ".cache" / f"xla-{tuning_cache.machine()}"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)  # for the processes that tests start
# A Ray starts a process of Python for each of its processors beforehand, which no test needs.
os.environ |= {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}


def run_script(module: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """`python -m module arguments`, to its end."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption(
        "--long",
        action="store_true",
        help="also run the tests of tests/long.txt, which take more than a second each",
    )
    parser.addoption(
        "--since", metavar="REV", help="also run the slow tests of the folders that changed since this commit"
    )
    parser.addoption(
        "--costs", metavar="FILE", help="write the processor time of each test, the dearest first"
    )
    parser.addoption(
        "--slow-minutes",
        type=float,
        metavar="M",
        help="begin no slow test later than so many minutes after the start",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STARTED] = time.monotonic()
    config.stash[FOLDERS], config.stash[KNOWN] = set(), True
    if (since := config.getoption("--since")) and not config.getoption("--slow"):
        paths, tests = (
            slow.changed_paths(since, REPOSITORY),
            {path.name for path in (REPOSITORY / "tests").iterdir() if path.is_dir()},
        )
        config.stash[FOLDERS] = tests | {slow.CONTRACTS} if paths is None else slow.folders(paths, tests)
        config.stash[KNOWN] = paths is not None


def pytest_report_header(config: pytest.Config) -> str | None:
    since = config.getoption("--since")
    if not config.stash[KNOWN]:
        return f"slow tests: of all folders, as git does not know here what changed since {since}: this copy has a short history, or none"
    return (
        f"slow tests: of what changed since {since}: {', '.join(sorted(config.stash[FOLDERS])) or 'nothing'}"
        if since
        else None
    )


def is_slow(item: pytest.Item) -> bool:
    """Whether it is marked so; its keywords are also the names of folders, and a copy of the repository may
    lie in one called slow."""
    return item.get_closest_marker("slow") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests come last, and by files in an order of each commit's own; a file's tests go to one worker,
    as do a zoo entry's."""
    marked, long = [item for item in items if is_slow(item)], slow.long_tests()
    others = (
        []
        if config.getoption("--slow")
        else [item for item in items if slow.folder_of(item.path, REPOSITORY) not in config.stash[FOLDERS]]
    )
    for item in others:
        if is_slow(item):
            item.add_marker(
                pytest.mark.skip(
                    reason="slow: run with --slow, or with --since and a commit before it changed"
                )
            )
        elif item.nodeid in long and not config.getoption("--long"):
            item.add_marker(pytest.mark.skip(reason="long: run with --long or --slow"))
    turn = slow.in_turn((str(item.path) for item in marked), REPOSITORY)
    items.sort(key=lambda item: turn[str(item.path)] + 1 if is_slow(item) else 0)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(
                pytest.mark.xdist_group(item.path.relative_to(REPOSITORY).with_suffix("").as_posix())
            )
        if is_slow(item):
            # apart from the others of its group, which come first
            item.add_marker(pytest.mark.xdist_group("slow"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    minutes = item.config.getoption("--slow-minutes")
    if minutes is not None and is_slow(item) and time.monotonic() - item.config.stash[STARTED] > 60 * minutes:
        pytest.skip(LEFT_OUT)


def processor_seconds() -> float:
    """What this process and its children that ended have spent; Ray's are nobody's children."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    item.stash[BEGAN] = processor_seconds()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, object, object]:
    if call.when == "teardown":
        item.user_properties.append((COST, processor_seconds() - item.stash[BEGAN]))
    return (yield)


def resident_mb() -> float:
    """What this process has in memory; 0 where the system is not Linux."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if statm.exists() else 0.0


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Between files, lets go of compiled programs once they are too many: each keeps 1.7 MB, were it one
    addition."""
    if nextitem is not None and nextitem.path != item.path and resident_mb() > KEPT_MB:
        contracts = sys.modules.get("tests.contracts")
        for rounds in (contracts.usual, contracts.by_plain_loops) if contracts else ():
            rounds.cache_clear()
        jax.clear_caches()
        ctypes.CDLL(None).malloc_trim(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        report
        for found in terminalreporter.stats.values()
        for report in found
        if isinstance(report, pytest.TestReport)
    ]
    costs = {
        report.nodeid: seconds
        for report in reports
        for name, seconds in report.user_properties
        if name == COST
    }
    terminalreporter.line(
        f"processor time of the tests: {sum(costs.values()) / 60:.1f} minutes, without Ray's processes"
    )
    if file := terminalreporter.config.getoption("--costs"):
        dearest = sorted(costs.items(), key=lambda one: -one[1])
        Path(file).write_text("".join(f"{seconds:8.2f}  {nodeid}\n" for nodeid, seconds in dearest))
    left = [
        report.nodeid for report in terminalreporter.getreports("skipped") if LEFT_OUT in str(report.longrepr)
    ]
    if left:
        terminalreporter.section(f"slow tests {LEFT_OUT} for these {len(left)}")
        for nodeid in sorted(left):
            terminalreporter.line(nodeid)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: FEDJAX_CORE_DATA, else shared/data beside the repository; without it the
    test is skipped."""
    named = os.environ.get("FEDJAX_CORE_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; set FEDJAX_CORE_DATA to the folder that holds it")
    return folder
