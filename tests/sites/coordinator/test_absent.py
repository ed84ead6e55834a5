"""Sites that are away, dead or slow: a round goes on without them soon, names them and why, and has them back
when they are."""

import logging
import threading
import time
from concurrent.futures import Future
from dataclasses import replace

import jax
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.audit import show
from fedjax_core.sites.coordinator.absent import Absent
from fedjax_core.sites.federation import Paused, Rules
from fedjax_core.sites.transport.in_process import InProcess
from fedjax_core.sites.wire.canonical import of_lines
from fedjax_core.sites.wire.envelope import header_of
from tests.contracts import assert_equal
from tests.sites.faulty import changed, corrupt, delayed, failed
from tests.sites.federations import NAMES, federation, site_files
from tests.zoo import fedavg, round_of, task

ALL = [0, 1, 2, 3]
AWAY = NAMES[1]


class Switch:
    """What becomes of messages to the sites that are `off`; all else goes through."""

    def __init__(self, off=(), how=lambda send, site, request: Future()):
        self.off, self.how, self.asked = set(off), how, []

    def __call__(self, send, site, request, n):
        self.asked.append((site, header_of(request).kind))
        return self.how(send, site, request) if site in self.off else send(site, request)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """So that nobody waits for ten seconds before a run begins, or for a whole one in a round."""
    monkeypatch.setattr("fedjax_core.sites.coordinator.collect._GRACE_SECONDS", 0.4)
    monkeypatch.setattr("fedjax_core.sites.coordinator.population._ANSWER_SECONDS", 0.5)


@pytest.fixture
def told(caplog):
    """What was said on screen."""
    caplog.set_level(logging.WARNING, "fedjax_core")
    return lambda: [
        said
        for said in (record.getMessage() for record in caplog.records)
        if "goes on without" in said or "back" in said
    ]


def joins(fed, switch):
    """Who was away when the run began is there, and was asked anew, as it is after half a minute."""
    switch.off = set()
    fed._joining._pending.clear()
    fed._joining.look(1)
    while not fed._collector.done(fed._joining._pending[NAMES.index(AWAY)][0]):
        time.sleep(0.01)


def seconds(fed, state):
    began = time.monotonic()
    state, seen = fed.run(state, ALL)
    return state, time.monotonic() - began, float(seen["clients"])


def test_a_site_that_is_silent_costs_its_deadline_once_and_then_a_grace_until_it_answers(told):
    switch = Switch()
    with federation(fedavg(), fault=switch, rules=Rules(quorum=2, deadline_seconds=60.0)) as (fed, _, _):
        state, _, _ = seconds(fed, fed.init(jax.random.key(1)))
        fed.rules, switch.off = replace(fed.rules, deadline_seconds=2.5), {AWAY}
        found = []
        for _ in range(3):
            state, took, clients = seconds(fed, state)
            found.append(took)
            assert clients == 3 and list(fed.lacked(int(state.round))) == [AWAY]
        assert found[0] > 2.4 and max(found[1:]) < 2.2, "waited for once, and then for a grace"
        fed.rules, switch.how = (
            replace(fed.rules, deadline_seconds=60.0),
            lambda send, site, request: delayed(send(site, request), 1.8),
        )
        began = time.monotonic()
        state, _, clients = seconds(fed, state)
        assert clients == 3
        time.sleep(max(0.0, 2.3 - (time.monotonic() - began)))  # its reply has come, late
        state, took, clients = seconds(fed, state)
        assert clients == 4 and took > 1.7, "which is a sign of life, so it is waited for again"
    assert [line.partition(" goes")[0] for line in told() if "goes on" in line] == ["round 2"], (
        "said once, not in every round"
    )
    assert told()[-1] == f"round 6: back again are {AWAY}"


def test_a_site_whose_connection_fails_only_after_a_while_costs_that_once():
    """As with Ray, which says after some seconds that an actor is not available, or says nothing."""

    def fails_late(send, site, request):
        lost = Future()
        timer = threading.Timer(1.5, lambda: lost.set_exception(ConnectionError("unavailable")))
        timer.daemon = True
        timer.start()
        return lost

    switch = Switch()
    with federation(fedavg(), fault=switch, rules=Rules(deadline_seconds=60.0, attempts=1)) as (fed, _, _):
        state, _, _ = seconds(fed, fed.init(jax.random.key(1)))
        switch.off, switch.how = {AWAY}, fails_late
        found = []
        for _ in range(2):
            state, took, clients = seconds(fed, state)
            found.append(took)
            assert clients == 3
    assert found[0] > 1.4 > found[1]


def test_without_a_grace_a_silent_site_is_waited_for_as_any_other():
    switch = Switch()
    with federation(fedavg(), fault=switch, rules=Rules(deadline_seconds=60.0)) as (fed, _, _):
        state, _, _ = seconds(fed, fed.init(jax.random.key(1)))
        fed.rules, switch.off = Rules(deadline_seconds=1.2, grace=None), {AWAY}
        for _ in range(2):
            state, took, _ = seconds(fed, state)
            assert took > 1.1
    for wrong in (0.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"grace is .* at least 1"):
            Rules(grace=wrong)


def test_below_the_quorum_a_silent_site_is_waited_for():
    """Where all are needed, as in the box, nothing goes on without one that answers within the deadline."""
    switch = Switch()
    with federation(fedavg(), fault=switch, rules=Rules(quorum=4, deadline_seconds=60.0)) as (fed, _, _):
        state, _, _ = seconds(fed, fed.init(jax.random.key(1)))
        fed.rules, switch.off = replace(fed.rules, deadline_seconds=1.0), {AWAY}
        with pytest.raises(
            Paused,
            match=rf"3 of 4 sites reported, and 4 .* Missing: {AWAY}: no reply in .* s\. The state is unchanged",
        ):
            fed.run(state, ALL)
        fed.rules, switch.how = (
            replace(fed.rules, deadline_seconds=60.0),
            lambda send, site, request: delayed(send(site, request), 1.5),
        )
        assert seconds(fed, state)[2] == 4


REASONS = {
    "silent": (lambda send, site, request: Future(), "no reply in"),
    "lost": (lambda send, site, request: failed(), "no reply came through (ConnectionError)"),
    "damaged": (lambda send, site, request: changed(send(site, request), corrupt), "changed on their way"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_pause_says_of_each_site_why(name, told):
    how, why = REASONS[name]
    switch = Switch()
    with federation(fedavg(), fault=switch, rules=Rules(quorum=4, deadline_seconds=60.0, attempts=1)) as (
        fed,
        _,
        _,
    ):
        state = fed.init(jax.random.key(1))
        fed.rules = replace(fed.rules, deadline_seconds=2.0)
        switch.off, switch.how = {AWAY}, how
        with pytest.raises(Paused) as paused:
            fed.run(state, ALL)
    missing = str(paused.value).partition("Missing: ")[2]
    assert (
        missing.startswith(f"{AWAY}: ")
        and why in missing
        and not any(other in missing for other in NAMES if other != AWAY)
    )


def test_a_pause_says_what_a_site_declined_and_what_the_gate_set_aside(tmp_path):
    path = tmp_path / "mayo.toml"
    path.write_text('site = "mayo"\n[tasks]\nmode = "first-use"\n')
    files = [replace(one, policy=path) if one.name == AWAY else one for one in site_files(folder=tmp_path)]
    with federation(fedavg(), files=files, rules=Rules(quorum=4)) as (fed, _, _):
        path.write_text('site = "mayo"\npaused = true\n[tasks]\nmode = "first-use"\n')
        with pytest.raises(Paused, match=r"Missing: mayo: .*paused"):
            fed.run(fed.init(jax.random.key(1)), ALL)
        fed.rules = Rules(quorum=4, max_norm=1e-9)
        with pytest.raises(
            Paused, match=r"Missing: charite: its report was set aside \(.*\): .*norm.*; mayo: .*paused"
        ):
            fed.run(fed.init(jax.random.key(1)), ALL)


def test_of_several_exchanges_each_has_a_part_of_the_time():
    """A site that falls silent in the first exchange leaves the second its own time, and the round its
    quorum."""
    switch = Switch()
    mime = fc.compose(fc.algorithms.mime(task(), optax.sgd(0.1)))
    with federation(mime, fault=switch, rules=Rules(quorum=3, deadline_seconds=60.0)) as (fed, _, _):
        state, _, _ = seconds(fed, fed.init(jax.random.key(1)))
        fed.rules, switch.off = replace(fed.rules, deadline_seconds=4.0), {AWAY}
        state, took, clients = seconds(fed, state)
        assert clients == 3 and 1.5 < took < 3.9


def test_a_round_that_lacked_a_site_says_so_in_the_audit_log_too(tmp_path):
    switch = Switch()
    with federation(fedavg(), fault=switch, folder=tmp_path, rules=Rules(attempts=1)) as (fed, _, _):
        state, _ = fed.run(fed.init(jax.random.key(1)), ALL)
        switch.off, switch.how = {AWAY}, lambda send, site, request: failed()
        state, _ = fed.run(state, ALL)
        switch.off = {*NAMES} - {AWAY}
        with pytest.raises(Paused):
            fed.run(state, ALL)
        assert fed.lacked(1) == {} and fed.lacked(2) == {AWAY: "no reply came through (ConnectionError)"}
    entries = [
        (one.what, of_lines("lacked", one.about))
        for one in show(tmp_path / "coordinator" / "audit")
        if one.what == "round"
    ]
    assert entries == [("round", []), ("round", [AWAY])]
    (paused,) = show(tmp_path / "coordinator" / "audit", what="paused")
    assert paused.about["missing"].startswith("charite: no reply came through")


def test_a_run_begins_with_those_who_are_there_and_the_other_joins(tmp_path, told):
    """Its first rounds are those of a cohort without it, bit for bit, and a resume needs it no more than the
    first start."""
    composed = round_of("scaffold, clip, feedback", 4)
    with federation(composed, folder=tmp_path / "whole") as (fed, _, _):
        expected = fed.init(jax.random.key(1))
        for cohort in ([0, 2, 3], ALL):
            expected, _ = fed.run(expected, cohort)
    switch = Switch({AWAY})
    with federation(composed, fault=switch, folder=tmp_path) as (fed, _, _):
        assert len(fed.clients) == 4 and fed.clients.sizes.tolist() == [23, 0, 1, 4]
        began = fed.clients.fingerprint()
        state, _, clients = seconds(fed, fed.init(jax.random.key(1)))
        assert clients == 3 and "no reply" in fed.lacked(1)[AWAY]
        assert fed.evaluate(state).sizes.tolist() == [23, 0, 1, 4]
        assert (AWAY, "train") not in switch.asked and (AWAY, "evaluate") not in switch.asked
        joins(fed, switch)
        state, _, clients = seconds(fed, state)
        assert (
            clients == 4
            and fed.clients.sizes.tolist() == [23, 5, 1, 4]
            and fed.clients.fingerprint() == began
        )
    assert_equal(state, expected)
    assert [entry.who for entry in show(tmp_path / "coordinator" / "audit", what="joined")] == [AWAY]
    with federation(composed, fault=Switch({NAMES[3]}), folder=tmp_path) as (fed, _, _):
        assert fed.clients.sizes.tolist() == [23, 5, 1, 4] and fed.clients.fingerprint() == began, (
            "all is known from before"
        )


def test_too_few_to_begin_is_said_at_once_by_name():
    with (
        pytest.raises(
            Paused, match=r"before 3 of its 4 sites have said .* and 2 did\. mayo: no reply came .*; oslo: "
        ),
        federation(fedavg(), fault=Switch(NAMES[1:3], lambda send, site, request: failed())),
    ):
        pass


def test_a_study_that_prepares_columns_needs_all_sites_and_names_at_once_who_is_missing():
    steps, began = [fc.preprocess.Rescale("x")], time.monotonic()
    with (
        pytest.raises(
            Paused,
            match=r"sums of every site's columns before the first round, and not all are there\. mayo: no reply in",
        ),
        federation(fedavg(), fault=Switch({AWAY}), prepare=steps),
    ):
        pass
    assert time.monotonic() - began < 30


def test_one_that_joins_and_is_not_believed_stays_out_with_the_reason():
    switch = Switch({AWAY})
    with federation(fedavg(), fault=switch, agreed={AWAY: 4}) as (fed, _, _):  # of its 5
        state, _ = fed.run(fed.init(jax.random.key(1)), ALL)
        joins(fed, switch)
        _, seen = fed.run(state, ALL)
        assert float(seen["clients"]) == 3 and "agrees to at most 4" in fed.lacked(2)[AWAY]


def test_models_are_scored_at_those_who_are_there_whoever_is_silent():
    switch = Switch()
    with federation(fedavg(), fault=switch, rules=Rules(deadline_seconds=60.0)) as (fed, _, _):
        params = fed.init(jax.random.key(1)).params
        fed.cross_evaluate({"one": params})
        fed.rules, switch.off = replace(fed.rules, deadline_seconds=3.0), {AWAY}
        found = fed.cross_evaluate({"one": params, "two": params, "three": params})
        assert {site for _, site in found.reasons} == {AWAY} and len(found.reasons) == 3


def test_who_is_absent_is_said_when_it_changes(caplog):
    caplog.set_level(logging.WARNING, "fedjax_core")
    absent, said = Absent(["a", "b", "c"]), []

    def tell(here, **reasons):
        caplog.clear()
        found = absent.tell(
            "round 1", [0, 1, 2], here, {"abc".index(name): why for name, why in reasons.items()}
        )
        said.append(caplog.text.count("WARNING"))
        return found

    assert tell([0, 2], b="no reply in 12 s") == {"b": "no reply in 12 s"}
    assert tell([0, 2], b="no reply in 1.5 s") == {"b": "no reply in 1.5 s"}
    tell([0, 2], b="declined")
    tell([2], b="declined", a="no reply in 3 s")
    assert tell([0, 1, 2]) == {}
    tell([0, 1, 2])
    tell([0, 1], c="not waited for, as there were enough reports")
    assert said == [1, 0, 1, 1, 1, 0, 0]


def test_what_nobody_waits_for_is_not_begun():
    """A site that is back after many rounds would else train all of them before the newest."""

    class Slow:
        name, began, go, failed = AWAY, [], threading.Event(), None

        def handle(self, request):
            self.began.append(request)
            self.go.wait(30)
            return b""

    transport = InProcess([Slow()])
    first, second, third = (transport.send(AWAY, request) for request in (b"1", b"2", b"3"))
    for left in (first, second):
        transport.take_back(left)
    Slow.go.set()
    third.result(30)
    assert Slow.began == [b"1", b"3"]
    taken = []
    switch = Switch()
    with federation(fedavg(), fault=switch, rules=Rules(deadline_seconds=60.0)) as (fed, _, faulty):
        state, _, _ = seconds(fed, fed.init(jax.random.key(1)))
        faulty.take_back, switch.off, fed.rules = taken.append, {AWAY}, Rules(deadline_seconds=1.0)
        seconds(fed, state)
    assert len(taken) == 1
