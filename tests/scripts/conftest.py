"""The scripts can be imported by their names, as they import one another."""

import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True, scope="package")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "scripts")
        yield
        for name in [name for name in sys.modules if name.startswith(("bench_", "profile_round", "soak_"))]:
            del sys.modules[name]
