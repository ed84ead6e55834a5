"""Each message is heard once, in its run and round."""

import pytest

from fedjax_core.sites.wire.replay import Replayed, ReplayGuard, WrongRound, WrongRun

HELLO = {"sender": "charite", "run": "heart-1", "round": 3, "sequence": 17}


@pytest.mark.meets("164.312(d)", by="a message counts once")
def test_a_message_is_heard_once_and_others_beside_it():
    guard = ReplayGuard("heart-1", 3)
    heard = guard.accept(**HELLO)
    for others in ({"sequence": 18}, {"sequence": 16}, {"sender": "mayo"}):
        heard.accept(**HELLO | others)
    guard.accept(**HELLO)  # the value from before has not heard it
    with pytest.raises(Replayed, match="message 17 of 'charite' was accepted before"):
        heard.accept(**HELLO)


def test_what_was_heard_stays_heard_in_other_rounds():
    guard = ReplayGuard("heart-1", 3).accept(**HELLO).at(4).at(3)
    with pytest.raises(Replayed):
        guard.accept(**HELLO)


def test_messages_may_overtake_one_another_by_a_window():
    guard = ReplayGuard("heart-1", 3)
    for sequence in range(1000, 1000 + 300):
        guard = guard.accept(**HELLO | {"sequence": sequence})
    assert len(guard.seen["charite"]) == 256
    with pytest.raises(Replayed, match="older than the last 256 accepted ones"):
        guard.accept(**HELLO | {"sequence": 1000})
    with pytest.raises(Replayed, match="was accepted before"):
        guard.accept(**HELLO | {"sequence": 1299})


@pytest.mark.parametrize(
    ("round", "said"), [(2, "round 2, which is over: this is round 3"), (4, "round 4, which has not begun")]
)
def test_other_rounds_are_refused(round, said):
    with pytest.raises(WrongRound, match=said):
        ReplayGuard("heart-1", 3).accept(**HELLO | {"round": round})


def test_other_runs_are_refused():
    with pytest.raises(WrongRun, match="speaks of run 'heart-0', but this is 'heart-1'"):
        ReplayGuard("heart-1", 3).accept(**HELLO | {"run": "heart-0"})
