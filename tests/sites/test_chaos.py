"""Faults drawn at random, many in one run, with sites and the coordinator killed between them: the bits are
the same as without any."""

import contextlib
import random
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.audit import held_by, show, verify
from fedjax_core.sites.coordinator.reports import Aggregation
from fedjax_core.sites.coordinator.server import broadcast
from fedjax_core.sites.federation import Federation, Paused, Rules
from fedjax_core.sites.site.client_update import client_update
from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.study import Study
from fedjax_core.sites.transport.in_process import InProcess
from fedjax_core.sites.wire.identity import Roster
from tests.contracts import assert_equal
from tests.sites.faulty import changed, delayed, failed
from tests.sites.federations import (
    BATCH,
    COORDINATOR,
    EPOCHS,
    NAMES,
    anew,
    drawing,
    federation,
    site_files,
    whole,
)
from tests.sites.in_parts import COMPOSED
from tests.zoo import round_of, task

ROUNDS, PATIENCE = 4, 100  # how often a round is run again
STUDIES = {
    "scaffold": COMPOSED,
    "mime": fc.compose(fc.algorithms.mime(task(), optax.sgd(0.1))),  # two exchanges a round
    "ifca": round_of("ifca"),
}


def mangled(raw, draw):
    """The message cut, lengthened, made of something else, or with a bit turned or a piece missing."""
    at, to = sorted(draw.randrange(len(raw) + 1) for _ in range(2))
    bit = draw.randrange(8 * len(raw))
    turned = raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]
    return draw.choice([raw[:at], raw + draw.randbytes(9), draw.randbytes(to), turned, raw[:at] + raw[to:]])


class Chaos:
    """A transport of which one message in so many goes wrong, and which restarts a site now and then."""

    near = False

    def __init__(self, sites, share, draw):
        self.inner, self._share, self._draw = InProcess(sites), share, draw
        self._requests, self._replies, self._timers = [], [b""], []
        self.still = False
        """Whether nothing goes wrong any more."""

    def send(self, site, request):
        request = bytes(request)
        self._requests.append((site, request))
        if self.still or self._draw.random() > self._share:
            return self._whole(site, request)
        fault = self._draw.choice(FAULTS)
        return fault(self, site, request, random.Random(self._draw.random()))

    def progress(self, site):
        return self.inner.progress(site)

    def close(self):
        """Nothing: the sites outlive a coordinator."""

    def stop(self):
        """The sites, once they have done all that they were asked."""
        for timer in self._timers:
            timer.join()
        self.inner.close()
        return self.inner.sites.values()

    def _whole(self, site, request):
        def handle():  # by the site of that name that there is when its turn comes
            self._replies.append(bytes(self.inner.sites[site].handle(request)))
            return self._replies[-1]

        return self.inner._threads[site].submit(handle)

    def lost(self, site, request, draw):
        return failed()

    def reply_lost(self, site, request, draw):
        self._whole(site, request).result()
        return failed()

    def request_mangled(self, site, request, draw):
        return self._whole(site, mangled(request, draw))

    def reply_mangled(self, site, request, draw):
        return changed(self._whole(site, request), lambda raw: mangled(raw, draw))

    def twice(self, site, request, draw):
        self._whole(site, request)
        return self._whole(site, request)

    def late(self, site, request, draw):
        return delayed(self._whole(site, request), draw.random() / 3)

    def request_late(self, site, request, draw):
        """So late that it is taken for lost."""
        self._timers.append(threading.Timer(draw.random(), lambda: self._whole(site, request)))
        self._timers[-1].start()
        return failed()

    def request_of_before(self, site, request, draw):
        self._whole(*draw.choice(self._requests)).result()
        return self._whole(site, request)

    def reply_of_before(self, site, request, draw):
        self._whole(site, request)
        old = Future()
        old.set_result(draw.choice(self._replies))
        return old

    def silence(self, site, request, draw):
        self._whole(site, request)
        return Future()

    def restart(self, site, request, draw):
        """The site is killed, perhaps with its work done and nothing said, and started again over its
        folder."""

        def again():
            if draw.random() < 0.5:
                self.inner.sites[site].handle(request)
            self.inner.sites[site] = anew(self.inner.sites[site])

        self.inner._threads[site].submit(again).result()
        return self._whole(site, request)


FAULTS = [
    Chaos.lost, Chaos.reply_lost, Chaos.request_mangled, Chaos.reply_mangled, Chaos.twice, Chaos.late, Chaos.request_late,
    Chaos.request_of_before, Chaos.reply_of_before, Chaos.silence, Chaos.restart,
]  # fmt: skip


def patiently(ask, *about):
    """What it gives once no site is away."""
    for _ in range(PATIENCE):
        with contextlib.suppress(Paused):
            return ask(*about)
    raise AssertionError(f"paused {PATIENCE} times")


def chaotic(composed, share, draw, folder, **settings):
    """(a function that begins a federation over the same sites and folder, their transport)."""
    files = site_files(folder=folder)
    sites = [Site(one, Study(composed, BATCH, EPOCHS), COORDINATOR.public).__enter__() for one in files]
    transport, roster = (
        Chaos(sites, share, draw),
        Roster({site.name: site.context.key.public for site in sites}),
    )

    def begun():
        fed = patiently(
            lambda: Federation(
                composed, files, batch_size=BATCH, epochs=EPOCHS, transport=transport, roster=roster, key=COORDINATOR,
                folder=folder / "coordinator", **settings,
            )
        )  # fmt: skip
        return fed, fed.init(jax.random.key(1))

    return begun, transport


def run(begun, transport, cohorts, draw, done=lambda number: None):
    """(the federation, all its states), with the coordinator killed now and then; `done` is told of each
    round that is done."""
    fed, state = begun()
    states = [state]
    while (number := len(states) - 1) < len(cohorts):
        if draw.random() < 0.15:  # and begins anew from one of its last two checkpoints
            fed.close()
            fed, _ = begun()
            number = max(0, number - draw.randint(0, 1))
        state, _ = patiently(fed.run, states[number], cohorts[number])
        states[number + 1 :] = [state]
        done(number)
    transport.still = True
    return fed, states


def check_logs(fed, transport, folder):
    """All are as they were written, and lead to the heads that the other ends hold."""
    fed.close()
    home, keys = folder / "coordinator" / "audit", [COORDINATOR.public]
    logs = {
        site.name: (site.context.folder / "audit", [site.context.key.public])
        for site in transport.stop()
        if site.__exit__() is None
    }
    verify(home, keys, held={name: held_by(*one, "coordinator") for name, one in logs.items()})
    for name, (log, its) in logs.items():
        verify(log, its, held={"coordinator": held_by(home, keys, name)})
    for log in (home, *(log for log, _ in logs.values())):
        assert not {"cut", "no heads", "head went back"} & {entry.what for entry in show(log)}


def undisturbed(composed, cohorts):
    with federation(composed, rules=Rules(quorum=4)) as (fed, sites, _):
        state = fed.init(jax.random.key(1))
        for cohort in cohorts:
            state, _ = fed.run(state, cohort)
        return state, whole(fed, sites, state), fed.evaluate(state).pooled


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed < 2 else pytest.mark.slow) for seed in range(60)]
)
def test_whatever_happens_the_bits_are_the_same(seed, tmp_path, monkeypatch):
    draw = random.Random(seed)
    composed = STUDIES[draw.choice(list(STUDIES)) if seed > 1 else "scaffold"]
    cohorts = [sorted(draw.sample(range(4), draw.randint(2, 4))) for _ in range(ROUNDS)]
    expected = undisturbed(composed, cohorts)
    monkeypatch.setattr("fedjax_core.sites.coordinator.exchange.HELD", draw.choice([0, 1, 4]))
    monkeypatch.setattr("fedjax_core.sites.coordinator.exchange.HELD_BYTES", 0)
    # more parts, more messages to go wrong
    part_bytes, share = draw.choice([(None, 0.3), (1 << 20, 0.3), (333, 0.03), (100, 0.02)])
    rules = Rules(
        quorum=4,
        attempts=draw.choice([1, 2, 4]),
        idle_seconds=0.4,
        deadline_seconds=draw.choice([2.0, 6.0]),
        part_bytes=part_bytes,
    )
    begun, transport = chaotic(composed, share, draw, tmp_path, rules=rules)
    fed, states = run(begun, transport, cohorts, draw)
    state = states[-1]
    assert patiently(lambda: fed.evaluate(state)).pooled == expected[2]
    assert_equal(state, expected[0])
    assert_equal(whole(fed, [transport.inner.sites[name] for name in NAMES], state), expected[1])
    check_logs(fed, transport, tmp_path)


BUFFERED = fc.compose(
    fc.algorithms.fedavg(task(), optax.sgd(0.1), server=optax.sgd(0.5, momentum=0.9)),
    uplink=fc.uplink.quantize(bits=4),
)
BUFFER = fc.Buffer(2, max_staleness=2)


def made_again(state, steps, sites):
    """The state after steps of these (site, version), one report after another."""
    models = []
    for counted in steps:
        models.append(broadcast(BUFFERED, 0, state, len(sites))[0])
        sums = Aggregation(BUFFERED, 0, state.uplink[0], BUFFER.size)
        for place, (name, version) in enumerate(counted):
            site = sites[name].context
            draws = drawing(state.key, version, site.address)
            seen = client_update(
                BUFFERED, 0, site.data.plan, site.data.clients, models[version], state.uplink[0], site.kept_shapes, draws, version
            )  # fmt: skip
            damping = np.float32(BUFFER.damping(len(models) - 1 - version))
            report = jax.tree.map(np.asarray, seen.sent), float(seen.weight)
            sums.add(SimpleNamespace(fields={}, sender=name), report, place, factor=damping)
        state = sums.conclude(state, "", Rules(), lambda *about: None, np.zeros(2, np.uint32))._replace(
            round=state.round + 1
        )
    return state


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed < 1 else pytest.mark.slow) for seed in range(40)]
)
def test_an_asynchronous_run_can_be_made_again_from_its_audit_log_whatever_happened(seed, tmp_path):
    draw, steps = random.Random(seed), []
    part_bytes, share = draw.choice([(None, 0.3), (1 << 20, 0.3), (333, 0.03)])
    rules = Rules(
        attempts=draw.choice([1, 2, 4]), deadline_seconds=draw.choice([1.0, 2.0]), part_bytes=part_bytes
    )
    begun, transport = chaotic(BUFFERED, share, draw, tmp_path, rules=rules, buffer=BUFFER)
    read = 0

    def done(number):
        nonlocal read
        entries = list(show(tmp_path / "coordinator" / "audit"))
        new = [one for one in entries[read:] if one.what == "update" and one.about["accepted"]]
        steps[number:] = [[(one.who, one.about["version"]) for one in new]]
        assert {one.round for one in new} == {number}
        read = len(entries)

    fed, states = run(begun, transport, [range(4)] * 6, draw, done)
    assert [len(counted) for counted in steps] == [BUFFER.size] * 6
    expected = made_again(states[0], steps, transport.inner.sites)
    assert_equal(states[-1]._replace(clients=()), expected._replace(clients=()))
    check_logs(fed, transport, tmp_path)
