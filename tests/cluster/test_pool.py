import math
from types import SimpleNamespace

import pytest

from fedjax_core.cluster.pool import WorkerHandle, _last_line
from fedjax_core.cluster.schedule import assign_to_workers


def member():
    return WorkerHandle(SimpleNamespace(about=SimpleNamespace(remote=lambda: None)))


def done(steps, seconds, compiled=False):
    return SimpleNamespace(work=SimpleNamespace(steps=steps), seconds=seconds, compiled=compiled)


def test_a_pace_is_that_of_the_last_shares_without_what_was_compiled():
    worker = member()
    worker.record_speed(done(100, 50.0, compiled=True))
    assert math.isnan(worker.speed)
    worker.record_speed(done(100, 1.0))
    worker.record_speed(done(200, 1.0))
    assert worker.speed == pytest.approx(130)


def test_a_worker_once_slow_gets_a_share_again():
    slow, fast = member(), member()
    slow.record_speed(done(1, 1.0))
    fast.record_speed(done(10, 1.0))
    assert assign_to_workers([5.0, 5.0], [slow.speed, fast.speed]) == [1, 1]
    for _ in range(9):
        slow.decay_speed(fast.speed)
    assert sorted(assign_to_workers([5.0, 5.0], [slow.speed, fast.speed])) == [0, 1]


def test_what_went_wrong_is_told_in_a_line():
    error = RuntimeError(
        "The actor died because of an error raised in its creation task, ray::A()\n  File x\nModuleNotFoundError: No module named 'y'"
    )
    assert _last_line(error) == "ModuleNotFoundError: No module named 'y'"
