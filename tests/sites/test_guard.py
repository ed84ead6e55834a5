"""Each message is heard once, in its run and round, also over restarts."""

import json

import pytest

from fedjax_core.sites.guard import Guard, Replayed, WrongRound, WrongRun

HELLO = {"sender": "charite", "run": "heart-1", "round": 3, "sequence": 17}


def test_a_message_is_heard_once_and_others_beside_it():
    guard = Guard("heart-1", 3)
    heard = guard.admit(**HELLO)
    for others in ({"sequence": 18}, {"sequence": 16}, {"sender": "mayo"}):
        heard.admit(**HELLO | others)
    guard.admit(**HELLO)  # the value from before has not heard it
    with pytest.raises(Replayed, match="message 17 of 'charite' was accepted before"):
        heard.admit(**HELLO)


def test_what_was_heard_stays_heard_in_other_rounds_and_after_a_restart():
    guard = Guard("heart-1", 3).admit(**HELLO).at(4).at(3)
    guard = Guard.restore(json.loads(json.dumps(guard.state())))
    with pytest.raises(Replayed):
        guard.admit(**HELLO)


def test_messages_may_overtake_one_another_by_a_window():
    guard = Guard("heart-1", 3)
    for sequence in range(1000, 1000 + 300):
        guard = guard.admit(**HELLO | {"sequence": sequence})
    assert len(guard.seen["charite"]) == 256
    with pytest.raises(Replayed, match="older than the last 256 accepted ones"):
        guard.admit(**HELLO | {"sequence": 1000})
    with pytest.raises(Replayed, match="was accepted before"):
        guard.admit(**HELLO | {"sequence": 1299})


@pytest.mark.parametrize(("round", "said"), [(2, "round 2, which is over: this is round 3"), (4, "round 4, which has not begun")])
def test_other_rounds_are_refused(round, said):
    with pytest.raises(WrongRound, match=said):
        Guard("heart-1", 3).admit(**HELLO | {"round": round})


def test_other_runs_are_refused():
    with pytest.raises(WrongRun, match="speaks of run 'heart-0', but this is 'heart-1'"):
        Guard("heart-1", 3).admit(**HELLO | {"run": "heart-0"})
