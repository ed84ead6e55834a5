"""A coordinator that is killed at any point of a round, its sites with it, ends bit for bit where an
uninterrupted one ends."""

import signal

import numpy as np
import pytest

from tests.conftest import run_script
from tests.consortium import kill_script
from tests.consortium.failpoints import POINTS

# Checkpoints are of rounds 2, 4 and 5. A kill before the first of them is one more way.
KILLS = [(point, 2 if "checkpoint" in point or "commit" in point else 3) for point in POINTS] + [
    ("after 1 result", 0),
    ("before its commit", 5),
]
QUICK = ("after 1 result", 3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return kill_script.run(tmp_path_factory.mktemp("undisturbed"))


def start(folder, *more):
    return run_script("tests.consortium.kill_script", folder, *more)


@pytest.mark.parametrize(
    "kill", [kill if kill == QUICK else pytest.param(kill, marks=pytest.mark.slow) for kill in KILLS], ids=str
)
def test_killed_and_started_again_it_ends_bit_for_bit(kill, undisturbed, tmp_path):
    killed = start(tmp_path, *kill)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    assert not (tmp_path / "state.npz").exists()
    done = start(tmp_path, *kill)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "state.npz") as found:
        leaves = [found[name] for name in found.files]
    assert [(x.dtype, x.shape, x.tobytes()) for x in leaves] == [
        (x.dtype, x.shape, x.tobytes()) for x in undisturbed
    ]
    assert not list(tmp_path.rglob("writing-*"))
