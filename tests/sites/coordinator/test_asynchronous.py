"""An asynchronous federation is the asynchronous simulator with its clients elsewhere, and nothing counts
twice, whatever happens."""

import re
from concurrent import futures

import jax
import numpy as np
import optax
import pytest
from msgspec import structs

import fedjax_core as fc
from fedjax_core.metrics import summary
from fedjax_core.sites.audit import show
from fedjax_core.sites.coordinator.collect import Collector
from fedjax_core.sites.federation import Paused, Rules
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.wire.envelope import decode, encode, header_of
from tests.contracts import assert_equal, assert_norm
from tests.sites.actors import kill
from tests.sites.faulty import changed, corrupt, delayed, failed
from tests.sites.federations import BATCH, EPOCHS, NAMES, columns, federation
from tests.zoo import lossy, round_of, task

ALL = [0, 1, 2, 3]
DELAYS = fc.Delays(median=50, spread=1.0, seed=3)
BUFFER = fc.Buffer(2, max_staleness=1)


@pytest.fixture(scope="module")
def composed():
    """Compiled at the sites, which takes longer than what some tests call a site's silence."""
    composed = fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.1), server=optax.sgd(0.5, momentum=0.9)))
    with federation(composed, buffer=fc.Buffer(4)) as (fed, _, _):
        fed.run(fed.init(jax.random.key(0)), ALL)
    return composed


class Scripted:
    """A transport's fault: reports come one at a time, each when the coordinator waits and there is nothing
    else to be had.

    They come after `delays(site, version)` ticks; or in the `order` of (site, version) given, and never where
    that is at its end."""

    def __init__(self, monkeypatch, delays=None, order=()):
        self.delays, self.order, self.now, self.came = delays, list(order), 0, []
        self.held = []  # (due, site, version, reply, its future)
        # (site, version) -> what becomes of each time that it is asked; of more times nothing
        self.faults = {}
        wait = futures.wait

        def waiting(waited, timeout=None, return_when=futures.ALL_COMPLETED):
            # 0: a look, and no wait
            while timeout != 0 and not any(future.done() for future in waited) and self.release():
                pass
            return wait(waited, timeout, return_when)

        monkeypatch.setattr(futures, "wait", waiting)

    def __call__(self, send, site, request, n):
        header, at = header_of(request), NAMES.index(site)
        faults = self.faults.get((at, header.round), []) if header.kind == "train" else []
        found = faults.pop(0)(send, site, request) if faults else send(site, request)
        # of which nothing was lacking
        announced = header.kind == "announce" and header_of(found.result()).kind in (
            "update",
            "parts",
        )
        if header.kind != "train" and not announced:
            found.exception()  # it is here before any report that is not
            return found
        due, later = self.now + (self.delays(at, header.round) if self.delays else 0), futures.Future()
        self.held.append((due, at, header.round, found, later))
        return later

    def release(self):
        """Whether there was a report to come."""
        if not self.held:
            return False
        by_order = [one for one in self.held if self.order and one[1:3] == self.order[0]]
        assert by_order or not self.order, f"{self.order[0]} does not come: {[one[1:3] for one in self.held]}"
        if self.delays is None and not by_order:
            return False
        one = by_order[0] if by_order else min(self.held, key=lambda one: one[:2])
        self.order = self.order[1:]
        self.held.remove(one)
        due, at, version, found, later = one
        self.now = max(self.now, due)
        self.came.append((at, version))
        later.set_exception(found.exception()) if found.exception() else later.set_result(found.result())
        return True


def run(fed, steps, state=None):
    state = fed.init(jax.random.key(1)) if state is None else state
    for _ in range(steps):
        state, _ = fed.run(state, ALL)
    return state


def accepted(folder):
    """(site, version) of the reports that the coordinator's audit log has as accepted."""
    entries = [
        entry
        for entry in show(folder / "coordinator" / "audit")
        if entry.what == "update" and entry.about["accepted"]
    ]
    return [(NAMES.index(entry.who), entry.about["version"]) for entry in entries]


def refused(folder):
    """(site, code) of what did not count."""
    entries = [
        entry for entry in show(folder / "coordinator" / "audit") if not entry.about.get("accepted", False)
    ]
    return [
        (NAMES.index(entry.who), entry.about["code"])
        for entry in entries
        if entry.who in NAMES and "code" in entry.about
    ]


@pytest.mark.parametrize(
    "buffer", [BUFFER, pytest.param(fc.Buffer(3), marks=pytest.mark.slow)], ids=["2 reports", "3 reports"]
)
def test_sites_end_where_the_asynchronous_simulator_ends(composed, buffer, monkeypatch):
    everyone = fc.Clients.from_list(columns(), ids=list(NAMES))
    sim = fc.AsynchronousSimulator(
        composed, everyone, buffer, delays=DELAYS, batch_size=BATCH, epochs=EPOCHS, lanes=2
    )
    expected, total = sim.init(jax.random.key(1)), {"stale": 0.0, "staleness": 0.0}
    with federation(composed, fault=Scripted(monkeypatch, DELAYS), buffer=buffer) as (fed, _, _):
        state = fed.init(jax.random.key(1))
        for cohort in [ALL, ALL, [0, 1, 3], [0, 1, 3], ALL, ALL, ALL, ALL]:
            expected, seen = sim.run(expected, cohort)
            state, got = fed.run(state, cohort)
            assert_norm(state.server, expected.server, 1e-6)
            found, numbers = (
                summary(got),
                {name: value for name, value in summary(seen).items() if name != "ticks"},
            )
            assert {name: found[name] for name in numbers} == pytest.approx(numbers, rel=1e-5)
            assert state.clients.started.tolist() == expected.clients.flight.started.tolist()
            assert state.clients.last.tolist() == expected.clients.flight.last.tolist()
            total = {name: total[name] + found[name] for name in total}
    assert total["staleness"] > 0 and (total["stale"] > 0) == (buffer.max_staleness == 1)


def test_with_a_buffer_for_all_it_is_the_synchronous_federation(composed, monkeypatch):
    with federation(composed) as (fed, _, _):
        expected = run(fed, 3)
    with federation(composed, fault=Scripted(monkeypatch, lambda site, version: 1), buffer=fc.Buffer(4)) as (
        fed,
        _,
        _,
    ):
        state = run(fed, 3)
        at_sites = fed.evaluate(state)
    assert_equal(state._replace(clients=()), expected._replace(clients=()))
    assert at_sites.sizes.tolist() == [23, 5, 1, 4] and np.isfinite(at_sites.pooled["loss"])


# two a step; that of 3 is the only stale one
ORDER = [
    (0, 0),
    (1, 0),
    (1, 1),
    (2, 0),
    (0, 1),
    (2, 2),
    (1, 2),
    (3, 0),
    (3, 3),
]
STEPS = 4


@pytest.fixture(scope="module")
def undisturbed(composed):
    with (
        pytest.MonkeyPatch.context() as patch,
        federation(composed, fault=Scripted(patch, order=ORDER), buffer=BUFFER) as (fed, _, _),
    ):
        return run(fed, STEPS)


def forged(box, **changes):
    """The site's own report with something in it that should not be, properly signed."""

    def forge(raw):
        header, tensors = decode(raw, box["fed"]._roster, recipient="coordinator")
        tensors = {name: x + changes.get("plus", 0) for name, x in tensors.items()}
        key = next(site.context.key for site in box["sites"] if site.name == header.sender)
        return encode(
            structs.replace(header, **{k: v for k, v in changes.items() if k != "plus"}), tensors, key
        )

    return lambda send, site, request: changed(send(site, request), forge)


def test_what_is_lost_or_damaged_is_asked_for_again(composed, undisturbed, monkeypatch, tmp_path):
    script = Scripted(monkeypatch, order=[(0, 0), *ORDER[:3], ORDER[2], *ORDER[3:]])
    script.faults = {
        (0, 0): [lambda send, site, request: (send(site, request).result(), failed())[1]],
        (1, 1): [lambda send, site, request: changed(send(site, request), corrupt)],
    }
    with federation(composed, fault=script, buffer=BUFFER, folder=tmp_path) as (fed, _, _):
        assert_equal(run(fed, STEPS), undisturbed)
    assert (1, "tampered-body") in refused(tmp_path) and (3, "too-stale") in refused(tmp_path)
    assert accepted(tmp_path) == [one for one in ORDER if one != (3, 0)]
    too_old = next(
        entry for entry in show(tmp_path / "coordinator" / "audit") if entry.about.get("code") == "too-stale"
    )
    assert (too_old.round, too_old.about["version"], too_old.about["staleness"]) == (
        3,
        0,
        3,
    ) and "at most 1" in too_old.about["reason"]


BAD = {
    "sends NaN": (lambda box: forged(box, plus=np.float32(np.nan)), "not-finite"),
    "says that it is of the newest version": (lambda box: forged(box, round=1), "wrong-round"),
    "answers another model": (lambda box: forged(box, answers="ab12"), "wrong-reply"),
    "declines": (
        lambda box: forged(box, kind="refusal", fields={"code": "declined", "reason": "away"}),
        "declined",
    ),
    "replays what it said before": (
        lambda box: lambda send, site, request: changed(send(site, request), box["old"]),
        "replayed",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_may_not_be_used_is_not_in_the_buffer_and_the_site_joins_again(
    composed, monkeypatch, tmp_path, name
):
    """Site 1's first report: the others fill the buffer, and nothing of it is in the model."""
    make, code = BAD[name]
    with federation(composed, fault=Scripted(monkeypatch, order=[(0, 0), (2, 0)]), buffer=BUFFER) as (
        fed,
        _,
        _,
    ):
        expected = run(fed, 1)
    times = 1 if code in ("not-finite", "declined") else 2  # what is not authentic is asked for once more
    script, box = Scripted(monkeypatch, order=[(0, 0), *[(1, 0)] * times, (2, 0), (1, 1), (3, 0)]), {}
    with federation(composed, fault=script, buffer=BUFFER, folder=tmp_path) as (fed, sites, transport):
        box |= {
            "fed": fed,
            "sites": sites,
            "old": lambda raw: next(r for r in transport.received if header_of(r).sender == NAMES[1]),
        }
        script.faults[1, 0] = [make(box)] * times
        state, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert_equal(state._replace(clients=()), expected._replace(clients=()))
        assert (float(seen["refused"]) + float(seen["missing"]), float(seen["clients"])) == (1, 2)
        state, seen = fed.run(state, ALL)
        assert float(seen["refused"]) == 0 and script.came[-2:] == [(1, 1), (3, 0)]
    assert (1, code) in refused(tmp_path) and accepted(tmp_path) == [(0, 0), (2, 0), (1, 1), (3, 0)]


def test_a_site_that_vanishes_is_given_up_and_what_it_sends_after_that_is_refused(
    composed, monkeypatch, tmp_path
):
    script = Scripted(monkeypatch, order=ORDER[:2])
    rules = Rules(deadline_seconds=0.2, attempts=1)
    with federation(composed, fault=script, buffer=BUFFER, folder=tmp_path, rules=rules) as (fed, _, _):
        state = run(fed, 1)
        assert state.clients.started.tolist() == [-1, -1, 0, 0]
        said = "step 1: 0 reports are in the buffer of 2, and nobody is at work. Without a report: charite: no reply in time; mayo: "
        with pytest.raises(Paused, match=re.escape(said)):
            fed.run(state, ALL)
        fed.rules = Rules()
        script.order = [(2, 0), (3, 1), (2, 1), (3, 1), (2, 1)]  # of the first three nobody knows any more
        state, seen = fed.run(state, ALL)
        assert float(seen["clients"]) == 2 and not script.order
        fed.evaluate(state)
    assert sorted(refused(tmp_path)) == [(2, "late"), (2, "late"), (3, "late")] and accepted(tmp_path) == [
        (0, 0),
        (1, 0),
        (3, 1),
        (2, 1),
    ]


def test_a_step_that_pauses_keeps_its_buffer_and_goes_on(composed, undisturbed, monkeypatch, tmp_path):
    script = Scripted(monkeypatch, order=ORDER[:3])

    def away(send, site, request):
        return failed()

    with federation(composed, fault=script, buffer=BUFFER, folder=tmp_path, rules=Rules(attempts=1)) as (
        fed,
        _,
        _,
    ):
        state = run(fed, 1)
        script.order, script.faults = [(1, 1), (0, 1), (2, 1), (3, 1)], {(at, 1): [away] for at in (0, 2, 3)}
        for _, _, _, _, later in script.held:  # those of 2 and 3 never come
            later.set_exception(ConnectionError())
        script.held.clear()
        with pytest.raises(Paused, match="step 1: 1 reports are in the buffer of 2"):
            fed.run(state, ALL)
        script.order = [(2, 1)]
        state, seen = fed.run(state, ALL)
        assert float(seen["clients"]) == 2
    assert accepted(tmp_path) == [(0, 0), (1, 0), (1, 1), (2, 1)]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_killed_in_a_step_it_begins_that_step_again_and_ends_bit_for_bit(
    composed, undisturbed, monkeypatch, tmp_path, at
):
    """`at`: reports of the fourth step that were in the buffer."""

    class Killed(Exception):
        """Where the process ends."""

    def fit(fed, rounds):
        keeping = {"run_dir": tmp_path / "run", "checkpoint_every": 1, "progress": False}
        return fc.fit(fed, rounds, cohorts=lambda round: ALL, key=jax.random.key(1), **keeping)

    def kill(send, site, request):
        raise Killed

    done, rest = ORDER[:6], ORDER[6:]
    script = Scripted(monkeypatch, order=done + rest[:at])
    script.faults[[(2, 3), (1, 3), (3, 3)][at]] = [kill]  # who is asked then
    with (
        pytest.raises(Killed),
        federation(composed, fault=script, buffer=BUFFER, folder=tmp_path) as (fed, _, _),
    ):
        fit(fed, STEPS)
    # which was given up: its model is gone
    script = Scripted(monkeypatch, order=[one for one in rest if one != (3, 0)])
    with federation(composed, fault=script, buffer=BUFFER, folder=tmp_path) as (fed, _, _):
        assert_equal(fit(fed, STEPS).state, undisturbed)


def test_a_state_that_falls_back_has_its_sites_asked_again(composed, undisturbed, monkeypatch, tmp_path):
    script = Scripted(monkeypatch, order=[*ORDER[:6], *ORDER[2:]])
    with federation(composed, fault=script, buffer=BUFFER, folder=tmp_path) as (fed, _, _):
        early = run(fed, 1)
        run(fed, 2, early)
        script.held.clear()
        assert_equal(run(fed, STEPS - 1, early), undisturbed)


@pytest.mark.parametrize("requests", ["whole", "in parts"])
def test_large_reports_come_in_parts_and_of_what_is_too_stale_none_does(
    composed, undisturbed, monkeypatch, requests
):
    if requests == "whole":
        monkeypatch.setattr(Collector, "outgoing", lambda self, request: None)
    script, settings = Scripted(monkeypatch, order=ORDER), {"buffer": BUFFER, "rules": Rules(part_bytes=400)}
    with federation(composed, fault=script, **settings) as (fed, _, transport):
        transport.near = False
        assert_equal(run(fed, STEPS), undisturbed)
        asked = [
            (header.round, header.fields["of"])
            for header in map(header_of, transport.sent)
            if header.kind == "part"
        ]
        assert any(header_of(raw).kind == "deliver" for raw in transport.sent) == (requests == "in parts")
    assert len(set(asked)) == len(ORDER) - 1 and sum(version == 0 for version, _ in set(asked)) == 3


def test_a_large_request_that_another_one_displaces_is_announced_again(composed, tmp_path):
    """A site gets an evaluation in the middle of the parts of a request to train, of which it then has none
    any more."""
    held, closed = [], True

    def fault(send, site, request, n):
        header = header_of(request)
        if (
            closed
            and (site, header.kind, header.round) == (NAMES[1], "deliver", 0)
            and header.fields["part"] > 2
        ):
            held.append((request, futures.Future()))
            return held[-1][1]
        return send(site, request)

    with federation(composed, fault=fault, buffer=fc.Buffer(3, max_staleness=9), folder=tmp_path) as (
        fed,
        sites,
        transport,
    ):
        fed.rules = Rules(part_bytes=200)
        state, _ = fed.run(fed.init(jax.random.key(1)), ALL)
        assert state.clients.started.tolist()[1] == 0 and 0 < sites[1].inbox.assembly.here.sum() == 3
        fed.evaluate(state)
        closed = False
        for request, later in held:
            later.set_result(transport.inner.send(NAMES[1], request).result())
        state, seen = fed.run(state, [0, 1])
        assert float(seen["missing"]) == 0
    assert accepted(tmp_path).count((1, 0)) == 1
    assert (1, "gone") in refused(tmp_path) and (1, "replayed") not in refused(tmp_path)


def test_a_site_that_gives_no_sign_of_life_is_asked_again_and_one_that_goes_on_is_not(
    composed, monkeypatch, tmp_path
):
    asked = []

    def silent(site):
        return site == NAMES[2] or (site == NAMES[1] and asked.count(site) == 1)

    def fault(send, site, request, n):
        if header_of(request).kind != "train":
            return send(site, request)
        asked.append(site)
        return (
            futures.Future()
            if silent(site)
            else delayed(send(site, request), 0.5 if site == NAMES[3] else 0.0)
        )

    rules = Rules(idle_seconds=0.2, attempts=2)
    with federation(composed, fault=fault, buffer=fc.Buffer(3), folder=tmp_path, rules=rules) as (
        fed,
        _,
        transport,
    ):
        steps = iter(range(1, 10**6))
        transport.progress = lambda site: 0 if silent(site) else next(steps)
        state, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert (float(seen["clients"]), float(seen["missing"])) == (
            3,
            1,
        ) and state.clients.started.tolist() == [-1] * 4
    assert [asked.count(name) for name in NAMES] == [1, 2, 2, 1]
    entries = [
        (entry.who, entry.what, entry.about.get("reason"))
        for entry in show(tmp_path / "coordinator" / "audit")
    ]
    assert (NAMES[1], "asked again", None) in entries and (NAMES[2], "missing", "no sign of life") in entries


def test_of_a_site_that_is_asked_twice_the_reply_that_comes_counts(composed, tmp_path):
    """It was silent for too long, and is heard only once: the second request is lost on its way."""
    asked, compiled = [], []

    def fault(send, site, request, n):
        if not compiled or site != NAMES[1] or header_of(request).kind != "train":
            return send(site, request)
        asked.append(site)
        return delayed(send(site, request), 0.45) if len(asked) == 1 else futures.Future()

    with federation(composed, fault=fault, buffer=fc.Buffer(4), folder=tmp_path) as (fed, _, transport):
        state, _ = fed.run(fed.init(jax.random.key(1)), ALL)  # compiles, for as long as that takes
        compiled.append(True)
        transport.progress, fed.rules = lambda site: 0, Rules(idle_seconds=0.3)
        _, seen = fed.run(state, ALL)
    assert (float(seen["clients"]), float(seen["missing"]), len(asked)) == (4, 0, 2)


@pytest.mark.parametrize("kind", ["deliver", "part"])
def test_a_site_that_is_asked_again_while_parts_move_is_not_late(composed, tmp_path, kind):
    """One part of a large request, or of a large report, is lost without a word; what comes of it once it is
    asked again counts, once."""
    lost = []

    def fault(send, site, request, n):
        header = header_of(request)
        if (site, header.kind, header.fields.get("part")) == (NAMES[1], kind, 1) and not lost:
            lost.append(site)
            return futures.Future()
        return send(site, request)

    with federation(composed, fault=fault, buffer=fc.Buffer(4), folder=tmp_path) as (fed, _, transport):
        state = fed.init(jax.random.key(1))
        transport.near, fed.rules = False, Rules(idle_seconds=0.1, part_bytes=400)
        run(fed, 2, state)
    entries = [(entry.who, entry.what) for entry in show(tmp_path / "coordinator" / "audit")]
    assert entries.count((NAMES[1], "asked again")) == 1 and not refused(tmp_path)
    assert sorted(accepted(tmp_path)) == [(at, version) for at in ALL for version in (0, 1)]


def test_a_report_that_was_asked_for_twice_is_there_in_the_next_step(composed, monkeypatch, tmp_path):
    """Its last part comes together with that of another, with which the step is over."""
    other, asked = [], []

    def fault(send, site, request, n):
        header = header_of(request)
        if (header.kind, header.fields.get("part"), header.round) != ("part", 1, 0) or site not in NAMES[:2]:
            return send(site, request)
        if site == NAMES[0]:
            other.append((send(site, request), futures.Future()))
            return other[0][1]
        asked.append(site)
        if len(asked) == 1:
            return futures.Future()
        found = send(site, request)
        found.result()
        other[0][1].set_result(other[0][0].result())
        return found

    monkeypatch.setattr(Collector, "outgoing", lambda self, request: None)
    with federation(composed, fault=fault, buffer=fc.Buffer(3, max_staleness=9), folder=tmp_path) as (
        fed,
        _,
        transport,
    ):
        state = fed.init(jax.random.key(1))
        steps = iter(range(1, 10**6))
        fed.rules, transport.progress = (
            Rules(idle_seconds=0.1),
            lambda site: next(steps) if site == NAMES[0] else 0,
        )
        monkeypatch.setattr(Collector, "part_bytes", 400)
        state, _ = fed.run(state, ALL)
        assert state.clients.started.tolist()[1] == 0
        fed.run(state, ALL)
    assert len(asked) == 2 and (1, 0) in accepted(tmp_path) and not refused(tmp_path)


@pytest.mark.parametrize(
    ("build", "settings", "said"),
    [
        (lambda: round_of("scaffold", 4), {}, "clients of scaffold keep state between rounds"),
        (lambda: fc.compose(fc.algorithms.mime(task(), optax.sgd(0.1))), {}, "has 2 exchanges"),
        (
            lambda: fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.1)), uplink=lossy()),
            {},
            "keeps state at each client",
        ),
        (
            lambda: fc.compose(
                fc.algorithms.fedavg(task(), optax.sgd(0.1), weighting=fc.algorithms.uniform),
                aggregator=fc.aggregators.trimmed_mean(0.1),
            ),
            {},
            "of parts does not",
        ),
        (None, {"buffer": fc.Buffer(5)}, "a buffer of 5 reports never fills: there are 4 sites"),
        (None, {"rules": Rules(quorum=3)}, "are of rounds, and with a buffer a step is made of 2 reports"),
        (None, {"rules": Rules(enough=1)}, "leave share and enough out"),
    ],
)
def test_what_has_no_meaning_without_rounds_is_refused(composed, build, settings, said):
    with (
        pytest.raises(ValueError, match=said),
        federation(composed if build is None else build(), **{"buffer": BUFFER, **settings}),
    ):
        pass


def test_a_cohort_that_never_fills_the_buffer_is_refused(composed):
    with federation(composed, buffer=BUFFER) as (fed, _, _):
        with pytest.raises(ValueError, match="version 0 can get only 1 reports and its buffer needs 2"):
            fed.run(fed.init(jax.random.key(0)), [0])
        with pytest.raises(ValueError, match="are of rounds"):
            fed.rules = Rules(share=0.5)


@pytest.mark.slow
def test_site_processes_report_when_they_are_done_and_one_that_is_killed_joins_again(composed, tmp_path):
    sites = [
        SiteFile(name=name, data=data, folder=tmp_path / name)
        for name, data in zip(NAMES, columns(), strict=True)
    ]
    settings = {
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "buffer": fc.Buffer(2),
        "rules": Rules(part_bytes=400, deadline_seconds=120.0),
    }

    def cohorts(round):
        if round == 3:
            kill(NAMES[1])
        return ALL if round < 6 else [1, 2]  # of whom the last four steps need it

    for rounds in (5, 10):  # a coordinator that ended, and the one after it
        with fc.Federation(composed, sites, folder=tmp_path / "coordinator", **settings) as fed:
            fed._transport.near = False
            history = fc.fit(
                fed, rounds, cohorts=cohorts, run_dir=tmp_path / "run", evaluate_every=rounds, progress=False
            )
    assert int(history.state.round) == 10 and all(
        row["clients"] == 2 for row in history.records if row["kind"] == "train"
    )
    assert history.records[-1]["loss"] < history.records[0]["loss"]
    found = accepted(tmp_path)
    assert len(found) == len(set(found)) and {at for at, _ in found} == set(ALL)
    assert any(entry.what == "came in parts" for entry in show(tmp_path / "coordinator" / "audit"))
