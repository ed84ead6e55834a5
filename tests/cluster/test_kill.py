"""The driver of a cluster simulation killed in the middle of `fit`, alone or with all of Ray: started again
it ends bit for bit."""

import contextlib
import json
import signal

import numpy as np
import psutil
import pytest

from tests.cluster.kill_script import POINTS, ROUNDS
from tests.conftest import run_script
from tests.run.small import leaves, rounds_logged

pytestmark = pytest.mark.slow

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Of a Ray that was killed: they try for a minute to tell of it, and end then."""


def start(folder, *more):
    return run_script("tests.cluster.kill_script", folder, *more)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Leaves and metrics of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = start(folder, "nobody", "device")
    assert done.returncode == 0, done.stderr[-2000:]
    return leaves(folder / "state.npz"), (folder / "run" / "metrics.jsonl").read_text()


def left(folder):
    """The processes of a killed run that are still at work."""
    found = []
    for pid, created, name in json.loads((folder / "tree").read_text()):
        with contextlib.suppress(psutil.NoSuchProcess):
            one = psutil.Process(pid)
            if one.create_time() == created and one.status() != psutil.STATUS_ZOMBIE:
                found.append((one, name))
    return found


@pytest.mark.parametrize(
    ("who", "where"), [("driver", "device"), ("everything", "device"), ("everything", "files")]
)
def test_killed_and_started_again_it_ends_bit_for_bit(who, where, uninterrupted, tmp_path):
    """With shares at work, with one of two back, in the middle of a checkpoint, before its commit: four kills
    of one run."""
    for point in POINTS:
        killed = start(tmp_path, who, where, *point)
        assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
        names = " ".join(name for _, _, name in json.loads((tmp_path / "tree").read_text()))
        assert "raylet" in names and "gcs_server" in names and names.count("ray::") >= 2
        others = [one for one, name in left(tmp_path) if name not in AGENTS]
        # Ray, and its workers, end with the driver that started it
        assert psutil.wait_procs(others, timeout=30)[1] == []
        for one, _ in left(tmp_path):
            one.kill()
    assert not (tmp_path / "state.npz").exists()
    done = start(tmp_path, who, where)
    assert done.returncode == 0, done.stderr[-2000:]
    assert leaves(tmp_path / "state.npz") == uninterrupted[0]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == uninterrupted[1]
    assert rounds_logged(tmp_path / "run", "train") == list(range(1, ROUNDS + 1))
    assert not list((tmp_path / "run").rglob("writing-*")) and not list((tmp_path / "run").rglob("damaged-*"))
    assert all(
        np.isfinite(np.frombuffer(raw, dtype)).all()
        for dtype, _, raw in uninterrupted[0]
        if dtype.kind == "f"
    )
