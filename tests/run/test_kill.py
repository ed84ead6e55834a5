"""A run that is killed at any moment and started again ends bit for bit where an uninterrupted one ends."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.run import train_script
from tests.run.small import leaves, rounds_logged

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("train_script.py")
ROUNDS = 12


def start(run_dir, output, pause=0.0, stderr=None):
    """The script as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PAUSE": str(pause)}
    command = [sys.executable, SCRIPT, run_dir, str(ROUNDS), output]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=REPOSITORY
    )


def finish(run_dir, output, capsys):
    """Starts the script in this process, in which it comes to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAUSE", "0")
        train_script.main(run_dir, ROUNDS, output)
    assert capsys.readouterr().out.splitlines()[-1] == f"finished {ROUNDS}"


def wait_for_round(process, wanted):
    """Returns when the script comes to this round."""
    for line in process.stdout:
        if line.split()[0] == str(wanted):
            return
    raise AssertionError(f"the script ended before round {wanted}")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Leaves and metrics of a run that nothing happened to, in a process of its own."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = start(folder / "run", folder / "state.npz")
    assert process.communicate(timeout=120)[0].splitlines()[-1] == f"finished {ROUNDS}"
    return leaves(folder / "state.npz"), (folder / "run" / "metrics.jsonl").read_text()


def check_same(folder, uninterrupted):
    assert leaves(folder / "state.npz") == uninterrupted[0]
    assert (folder / "run" / "metrics.jsonl").read_text() == uninterrupted[1]
    assert rounds_logged(folder / "run", "train") == list(range(1, ROUNDS + 1))
    assert rounds_logged(folder / "run", "eval") == list(range(0, ROUNDS + 1, 3))
    assert not list((folder / "run").rglob("writing-*")) and not list((folder / "run").rglob("damaged-*"))


def run_killed(folder, moments, uninterrupted, capsys):
    """Kills the run after each of these (round, seconds), and starts it once more."""
    for wanted, seconds in moments:
        process = start(folder / "run", folder / "state.npz", pause=0.1)
        wait_for_round(process, wanted)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    finish(folder / "run", folder / "state.npz", capsys)
    check_same(folder, uninterrupted)


def test_killed_twice(tmp_path, uninterrupted, capsys):
    rng = random.Random()
    moments = [(wanted, rng.uniform(0, 0.15)) for wanted in (rng.randrange(1, 5), rng.randrange(6, 10))]
    print("killed after", moments)  # shown if it fails
    run_killed(tmp_path, moments, uninterrupted, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(2))
def test_killed_ten_times(tmp_path, uninterrupted, attempt, capsys):
    rng = random.Random()
    # From a moment on, a later round has been begun at least: the script must come to it, not find it done.
    moments = [(wanted, rng.uniform(0, 0.12)) for wanted in (0, 0, 2, 3, 5, 6, 7, 8, 9, 11)]
    print("killed after", moments)
    run_killed(tmp_path, moments, uninterrupted, capsys)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_signal_finishes_the_round_saves_and_returns(tmp_path, uninterrupted, number, capsys):
    process = start(tmp_path / "run", tmp_path / "state.npz", pause=0.1)
    wait_for_round(process, 5)
    process.send_signal(number)
    stopped, round = process.communicate(timeout=60)[0].split()[-2:]
    assert (process.returncode, stopped) == (0, "interrupted")
    assert int(sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1]) == int(round)
    finish(tmp_path / "run", tmp_path / "state.npz", capsys)
    check_same(tmp_path, uninterrupted)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    process = start(tmp_path / "run", tmp_path / "state.npz", pause=20, stderr=subprocess.PIPE)
    wait_for_round(process, 0)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=10)
    assert process.returncode != 0 and "KeyboardInterrupt" in said
