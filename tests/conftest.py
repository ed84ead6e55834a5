"""Strict settings for every test, eight fake devices, `--slow`, and where the real data lies."""

import hashlib
import os
import platform
from pathlib import Path

# Before JAX is imported: it reads them once.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = Path(__file__).resolve().parents[1]


def processor() -> str:
    """A name for this kind of processor, whose programs another kind may not be able to run."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    said = sorted({line for line in lines if line.startswith(("flags", "Features", "model name")) or not cpuinfo.exists()})
    return hashlib.sha256("\n".join([platform.machine(), *said]).encode()).hexdigest()[:12]


# Compiling is most of a test's time: keeping what was compiled takes tests/models from 34 s to 13 s the second time (2-core x86). The key
# of an entry has the program, the flags and the version of XLA, but not the processor. Processes that tests start compile for themselves.
jax.config.update("jax_compilation_cache_dir", str(REPOSITORY / ".cache" / f"xla-{processor()}"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets: FEDJAX_CORE_DATA, else shared/data beside the repository; without it the test is skipped."""
    named = os.environ.get("FEDJAX_CORE_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not there; set FEDJAX_CORE_DATA to the folder that holds it")
    return folder
