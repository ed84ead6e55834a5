"""What networks and sites do to a round: it ends as if nothing had been, or as if the site had not been
asked, or not at all."""

import re
import time
from concurrent.futures import Future
from dataclasses import replace

import jax
import numpy as np
import pytest
from msgspec import structs

from fedjax_core.sites.audit import show, verify
from fedjax_core.sites.federation import Paused, Rules
from fedjax_core.sites.wire.envelope import decode, encode, header_of
from fedjax_core.sites.wire.identity import SiteKey
from tests.contracts import assert_equal
from tests.sites.faulty import changed, corrupt, delayed, failed
from tests.sites.federations import COORDINATOR, NAMES, federation
from tests.zoo import round_of

ALL = [0, 1, 2, 3]
WHO = 2  # of the sites, to which things happen, in the second round
COMPOSED = round_of("scaffold, clip, feedback", 4)
RULES = Rules(deadline_seconds=300.0)


def twice(send, site, request):
    first, again = send(site, request), send(site, request)
    assert first.result() == again.result()
    return again


def run(fed, cohorts):
    state = fed.init(jax.random.key(1))
    for cohort in cohorts:
        state, _ = fed.run(state, cohort)
    return state


def train(request, round=1):
    header = header_of(request)
    return header.kind == "train" and header.round == round


@pytest.fixture(scope="module")
def undisturbed():
    """The state after three rounds of all sites, and where one of them was not asked in the second."""
    found = []
    for second in (ALL, [0, 1, 3]):
        with federation(COMPOSED, rules=RULES) as (fed, _, _):
            found.append(run(fed, [ALL, second, ALL]))
    return found


HARMLESS = {
    "delayed, so that replies come in another order": lambda send, site, request, n: delayed(
        send(site, request), 0.1 * NAMES[::-1].index(site)
    ),
    "delivered twice": lambda send, site, request, n: twice(send, site, request),
    "reply corrupted once": lambda send, site, request, n: (
        changed(send(site, request), corrupt) if n == 2 else send(site, request)
    ),
    "request corrupted once": lambda send, site, request, n: send(
        site, corrupt(request) if n == 2 else request
    ),
    "connection lost once, before the site had it": lambda send, site, request, n: (
        failed() if n == 2 else send(site, request)
    ),
    "connection lost once, after the site did it": lambda send, site, request, n: (
        (send(site, request).result(), failed())[1] if n == 2 else send(site, request)
    ),
}


@pytest.mark.parametrize(
    "name",
    [name if i % 2 == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(HARMLESS)],
)
def test_as_if_nothing_had_been(name, undisturbed):
    with federation(COMPOSED, fault=HARMLESS[name], rules=RULES) as (fed, _, _):
        assert_equal(run(fed, [ALL] * 3), undisturbed[0])


def test_reports_that_come_before_their_turn_wait_where_they_lie(undisturbed, monkeypatch, tmp_path):
    """With one place to wait in, the last two of four reports are brought twice while the first is late; the
    bits are the same."""
    monkeypatch.setattr("fedjax_core.sites.coordinator.exchange.HELD", 1)
    monkeypatch.setattr("fedjax_core.sites.coordinator.exchange.HELD_BYTES", 0)
    brought, gone = [], set()

    def lazily(reply, site, which):
        def bring():
            brought.append((site, which))
            if site in gone and brought.count((site, which)) == 2:
                raise ConnectionError("the site is gone")
            return reply

        return bring

    def fault(send, site, request, n):
        found = send(site, request)
        if not train(request):
            return found
        late = [0.5, 0.1, 0.2, 0.3][NAMES.index(site)]
        return delayed(changed(found, lambda raw: lazily(raw, site, n)), late)

    with federation(COMPOSED, fault=fault, rules=RULES, folder=tmp_path) as (fed, _, _):
        assert_equal(run(fed, [ALL] * 3), undisturbed[0])
        assert brought == [(NAMES[i], 2) for i in (1, 2, 3, 0, 2, 3)]
    brought.clear()
    gone.add(NAMES[2])
    with federation(COMPOSED, fault=fault, rules=RULES) as (fed, _, _):
        state = run(fed, [ALL])
        state, seen = fed.run(state, ALL)
        assert float(seen["clients"]) == 3 and float(seen["refused"]) == 1 and float(seen["missing"]) == 0
        state, _ = fed.run(state, ALL)
        assert_equal(state, undisturbed[1])


def forged(box, **changes):
    """The site's own report with something in it that should not be, properly signed."""

    def forge(raw):
        header, tensors = decode(raw, box["fed"]._roster, recipient="coordinator")
        tensors = {name: changes["tensor"](x) if "tensor" in changes else x for name, x in tensors.items()}
        new = {key: value for key, value in changes.items() if key not in ("tensor", "key", "weight")}
        fields = {**header.fields, **({"weight": changes["weight"]} if "weight" in changes else {})}
        key = changes.get("key") or box["sites"][WHO].context.key
        return encode(structs.replace(header, fields=fields, **new), tensors, key)

    return lambda send, site, request: changed(send(site, request), forge)


def not_finite(x):
    return np.full_like(x, np.nan) if x.dtype.kind == "f" else x


def last_round(box):
    def old(send, site, request):
        return changed(send(site, request), lambda raw: box["transport"].of[site])

    return old


LEFT_OUT = {
    "never answers": (lambda box: lambda send, site, request: Future(), "missing"),
    "answers too late": (lambda box: lambda send, site, request: delayed(send(site, request), 4.0), "late"),
    "is always corrupted": (
        lambda box: lambda send, site, request: changed(send(site, request), corrupt),
        "tampered-body",
    ),
    "is not there": (lambda box: lambda send, site, request: failed(), "ConnectionError"),
    "sends NaN": (lambda box: forged(box, tensor=not_finite), "not-finite"),
    "claims all patients there are": (lambda box: forged(box, weight=1e9), "bad-weight"),
    "sends another shape": (lambda box: forged(box, tensor=lambda x: x.reshape(-1)[:1]), "wrong-shape"),
    "has changed its data": (lambda box: forged_field(box, "data", "beef"), "changed-data"),
    "answers another model": (lambda box: forged(box, answers="ab12"), "wrong-reply"),
    "has another configuration": (lambda box: forged(box, config="ab12"), "wrong-config"),
    "replays its last report": (last_round, "wrong-round"),
    "speaks for another": (lambda box: lambda send, site, request: send(NAMES[0], request), "wrong-sender"),
    "signs with another key": (lambda box: forged(box, key=SiteKey.make(NAMES[WHO])), "wrong-key"),
    "sends a pickle": (
        lambda box: lambda send, site, request: changed(send(site, request), lambda raw: b"\x80\x04N."),
        "pickle-payload",
    ),
}


def forged_field(box, field, value):
    def forge(raw):
        header, tensors = decode(raw, box["fed"]._roster, recipient="coordinator")
        return encode(
            structs.replace(header, fields={**header.fields, field: value}),
            tensors,
            box["sites"][WHO].context.key,
        )

    return lambda send, site, request: changed(send(site, request), forge)


@pytest.mark.parametrize("name", LEFT_OUT)
def test_as_if_the_site_had_not_been_asked(name, undisturbed, tmp_path):
    make, code = LEFT_OUT[name]
    box = {}

    def fault(send, site, request, n):
        return (
            make(box)(send, site, request) if site == NAMES[WHO] and train(request) else send(site, request)
        )

    with federation(COMPOSED, fault=fault, folder=tmp_path, rules=RULES) as (fed, sites, transport):
        box |= {"fed": fed, "sites": sites, "transport": transport}
        state = run(fed, [ALL])
        transport.of = {header_of(raw).sender: raw for raw in transport.received}
        fed.rules = replace(RULES, deadline_seconds=1.5, attempts=1, quorum=3, share=0.5)
        state, seen = fed.run(state, ALL)
        assert float(seen["clients"]) == 3 and float(seen["refused"]) + float(seen["missing"]) == 1
        if code == "late":
            time.sleep(3)
        fed.rules = RULES
        state, seen = fed.run(state, ALL)
        assert float(seen["clients"]) == 4
    assert_equal(state, undisturbed[1])
    folder = tmp_path / "coordinator" / "audit"
    verify(folder, [COORDINATOR.public])
    about = [
        {**entry.about, "what": entry.what}
        for entry in show(folder)
        if entry.who == NAMES[WHO] and entry.what != "left"
    ]
    assert code in [one.get("code") for one in about] + [one.get("reason") for one in about] + [
        one["what"] for one in about
    ]


def test_below_the_quorum_nothing_is_averaged_and_the_round_can_be_run_again(undisturbed):
    down = True

    def fault(send, site, request, n):
        return failed() if down and train(request) and site in NAMES[:2] else send(site, request)

    with federation(COMPOSED, fault=fault, rules=replace(RULES, quorum=3)) as (fed, _, _):
        state = run(fed, [ALL])
        before = jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))
        with pytest.raises(
            Paused, match=re.escape(f"2 of 4 sites reported, and 3 must. Missing: {NAMES[0]}")
        ):
            fed.run(state, ALL)
        now = jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))
        jax.tree.map(np.testing.assert_array_equal, now, before)
        down = False
        for _ in range(2):
            state, _ = fed.run(state, ALL)
        assert_equal(state, undisturbed[0])


def test_a_share_of_the_examples_may_be_asked_for():
    def fault(send, site, request, n):
        return failed() if train(request, 0) and site == NAMES[0] else send(site, request)

    with (
        federation(COMPOSED, fault=fault, rules=replace(RULES, quorum=3, share=0.5)) as (fed, _, _),
        pytest.raises(Paused, match="50% of the examples"),  # the largest has 23 of 33
    ):
        run(fed, [ALL])


def test_with_enough_reports_the_others_are_not_waited_for():
    def fault(send, site, request, n):
        return Future() if train(request, 0) and site == NAMES[0] else send(site, request)

    with federation(COMPOSED, fault=fault, rules=replace(RULES, enough=3)) as (fed, _, _):
        _, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert float(seen["clients"]) == 3


def test_waiting_ends_when_nothing_comes_for_a_while():
    def fault(send, site, request, n):
        return Future() if train(request) and site == NAMES[0] else send(site, request)

    with federation(COMPOSED, fault=fault, rules=RULES) as (fed, _, _):
        state = run(fed, [ALL])
        fed.rules = replace(RULES, idle_seconds=1.0)
        _, seen = fed.run(state, ALL)
        assert float(seen["clients"]) == 3
