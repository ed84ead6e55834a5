"""Large requests in parts: the bits of requests that go whole, over links that lose, repeat, reorder, change
or cut what they carry."""

import gc
import time
import tracemalloc
import weakref
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import optax
import pytest
from msgspec import structs

import fedjax_core as fc
from fedjax_core.sites.audit import show
from fedjax_core.sites.coordinator.collect import Collector
from fedjax_core.sites.federation import Rules
from fedjax_core.sites.multipart import fetch
from fedjax_core.sites.multipart.requests import Inbox, OutgoingRequest
from fedjax_core.sites.protocol.kinds import ANNOUNCE, DELIVER
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.wire.envelope import decode, encode, header_of
from fedjax_core.sites.wire.tensors import LIMITS
from tests.contracts import assert_equal
from tests.sites.faulty import changed, corrupt, delayed, failed
from tests.sites.federations import NAMES, begin_anew, federation
from tests.sites.in_parts import AT, COMPOSED, WHO, entries, run

# bytes of a part, and parts of the request in the second round, with the head of a log in it or without
PART, PARTS = (
    210,
    9,
)
RULES = Rules(deadline_seconds=300.0, part_bytes=PART)
SIMPLE = fc.compose(fc.algorithms.fedavg(fc.models.logistic(features=4, classes=3), optax.sgd(0.1)))
PLAIN = {"x": np.ones((3, 4), np.float32), "y": np.zeros(3, np.int32)}


def part_of(request, round=1):
    """Which part of a request of this round this brings, None where it is another thing."""
    header = header_of(request)
    return header.fields["part"] if header.kind == DELIVER and header.round == round else None


def announces(request, round=1):
    header = header_of(request)
    return header.kind == ANNOUNCE and header.round == round


@pytest.fixture(scope="module")
def undisturbed():
    """The state after two rounds of messages that move whole."""
    with federation(COMPOSED, rules=replace(RULES, part_bytes=None)) as (fed, _, transport):
        found = run(fed)[0]
        assert {header_of(raw).kind for raw in transport.sent} == {"describe", "train"}
        return found


def test_the_bits_are_those_of_requests_that_go_whole_and_each_site_is_sent_each_part_once(
    undisturbed, tmp_path
):
    with federation(COMPOSED, rules=RULES, folder=tmp_path) as (fed, _, transport):
        assert_equal(run(fed)[0], undisturbed)
        delivered = [raw for raw in transport.sent if part_of(raw) is not None]
        assert Counter(map(part_of, delivered)) == {i: 4 for i in range(PARTS)}
        assert (
            not any(header_of(raw).kind == "train" for raw in transport.sent)
            and max(map(len, transport.sent)) < 1500
        )
    went = entries(tmp_path, "went in parts")[-1]
    assert went["parts"] == -(-went["bytes"] // PART) == PARTS and went["again"] == 0


def test_reports_are_brought_again_though_the_request_went_in_parts(undisturbed, monkeypatch):
    """One report may wait for its turn; the first of the cohort is the last to come, so that two others are
    brought again."""
    monkeypatch.setattr("fedjax_core.sites.coordinator.exchange.HELD", 1)
    monkeypatch.setattr("fedjax_core.sites.coordinator.exchange.HELD_BYTES", 0)
    again = []
    bring = Collector.again
    monkeypatch.setattr(Collector, "again", lambda self, at: again.append(at) or bring(self, at))

    def fault(send, site, request, n):
        return (
            delayed(send(site, request), 0.2)
            if announces(request) and site == NAMES[0]
            else send(site, request)
        )

    with federation(COMPOSED, fault=fault, rules=RULES) as (fed, _, _):
        assert_equal(run(fed)[0], undisturbed)
    assert len(again) >= 2


def test_a_request_that_is_not_too_long_goes_as_it_is(undisturbed):
    with federation(COMPOSED, rules=replace(RULES, part_bytes=1 << 20)) as (fed, _, transport):
        assert_equal(run(fed)[0], undisturbed)
        assert {header_of(raw).kind for raw in transport.sent} == {"describe", "train"}


def once(when, then):
    """A fault of one message to WHO."""
    done = []

    def fault(send, site, request):
        if site != WHO or done or not when(request):
            return send(site, request)
        done.append(1)
        return then(send, site, request)

    return fault


def twice(send, site, request):
    send(site, request).result()
    return send(site, request)


def overtaken():
    """Of the parts 2 and 3 the second gets to the site first."""
    held = []

    def fault(send, site, request):
        i = part_of(request)
        if site == WHO and i == 2 and not held:
            held.append((request, Future()))
            return held[0][1]
        found = send(site, request)
        if site == WHO and i == 3:
            found.result()
            send(site, held[0][0]).add_done_callback(lambda f: held[0][1].set_result(f.result()))
        return found

    return fault


def third(request):
    return part_of(request) == 3


FAULTS = {
    "a part is lost": lambda: once(third, lambda send, site, request: failed()),
    "a part comes, and the site's word of it is lost": lambda: once(
        third, lambda *a: (a[0](*a[1:]).result(), failed())[1]
    ),
    "a part is changed": lambda: once(third, lambda send, site, request: send(site, corrupt(request))),
    "the site's word of a part is changed": lambda: once(
        third, lambda send, site, request: changed(send(site, request), corrupt)
    ),
    "a part comes twice": lambda: once(third, twice),
    "every part comes twice": lambda: lambda *a: twice(*a) if part_of(a[2]) is not None else a[0](*a[1:]),
    "parts overtake one another": overtaken,
    "the announcement is lost": lambda: once(announces, lambda send, site, request: failed()),
    "the announcement is changed": lambda: once(
        announces, lambda send, site, request: send(site, corrupt(request))
    ),
    "what the site says it lacks is changed": lambda: once(
        announces, lambda *a: changed(a[0](*a[1:]), corrupt)
    ),
    "the announcement comes twice": lambda: lambda *a: twice(*a) if announces(a[2]) else a[0](*a[1:]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_as_if_nothing_had_been(name, undisturbed, monkeypatch):
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    fault = FAULTS[name]()
    with federation(
        COMPOSED, fault=lambda send, site, request, n: fault(send, site, request), rules=RULES
    ) as (fed, _, _):
        state, seen = run(fed)
        assert float(seen["clients"]) == 4
        assert_equal(state, undisturbed)


CUTS = ["for a moment", "for longer than a part is sent", "as the site begins anew"]


@pytest.mark.parametrize("cut", CUTS)
def test_what_was_cut_is_taken_up_where_it_was(cut, undisturbed, monkeypatch, tmp_path):
    """The link is lost after four parts, with two under way: the site is sent those that it lacks, and no
    other twice."""
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    came, asked, lost = [], 0, 0

    def down():
        if len(came) != 4 or cut == "as the site begins anew":
            return False
        return lost < 3 if cut == "for a moment" else asked < 2  # until the site is asked once more

    def fault(send, site, request, n):
        nonlocal asked, lost
        if site == WHO and announces(request):
            asked += 1
        i = part_of(request)
        if site != WHO or i is None:
            return send(site, request)
        if down():
            lost += 1
            return failed()
        if len(came) == 4 and cut == "as the site begins anew" and not lost:
            lost += 1
            begin_anew(sites, transport, AT)
        found = send(site, request)
        came.append(i)
        return found

    with federation(COMPOSED, fault=fault, rules=RULES, folder=tmp_path) as (fed, sites, transport):
        assert_equal(run(fed)[0], undisturbed)
        sites[AT].__exit__()
    if cut == "as the site begins anew":  # it has none of the parts that came before
        assert entries(tmp_path, "declined")[0]["code"] == "gone" and sorted(set(came)) == [*range(PARTS)]
        assert len(came) <= PARTS + 6 and came.count(PARTS - 1) == 1
    else:
        assert sorted(came) == [*range(PARTS)] and asked == (2 if cut == "for a moment" else 3)
        assert lost == 3 if cut == "for a moment" else fetch.TRIES <= lost <= 2 * fetch.TRIES


# What needs no training: requests to describe, with numbers that nobody reads.

LONG = 1000  # numbers; such a request has about 22 parts


def simple(fault=None, folder=None, rules=RULES, **about):
    """Two sites; `about` is of the second one's file."""
    files = [
        SiteFile(name=name, data=PLAIN, folder=None if folder is None else folder / name)
        for name in NAMES[:2]
    ]
    files[AT] = replace(files[AT], **about)
    return federation(SIMPLE, files=files, fault=fault, folder=folder, rules=rules)


def asking(fed, seed=0):
    x = np.random.default_rng(seed).normal(size=LONG).astype(np.float32)
    return fed._requests.write("describe", 1, to=NAMES[:2], body={"x": x})


def ask(fed, request=None):
    """The sites whose replies to such a request count."""
    fed._collector.begin(1)
    return sorted(fed._collector.collect(request or asking(fed), 1, [0, 1]))


def test_a_coordinator_that_began_anew_goes_on_where_the_one_before_was_killed():
    """The request is the same but for its head: of what the site has, the parts with the head alone come
    again."""
    with simple() as (fed, sites, _):
        first, second = (OutgoingRequest(asking(fed), PART, fed._requests) for _ in range(2))
        site, parts = sites[0], len(first.manifest.digests)
        site.handle(first.announcement)
        assert first.part(1) is first.part(1), "made once for the sites that are as far"
        for i in range(parts // 2):
            assert header_of(site.handle(first.part(i))).kind == "delivered"
        lacking = second.lacking(
            decode(site.handle(second.announcement), fed._roster, recipient="coordinator")
        )
        same = [i for i in range(parts) if (first.manifest.digests[i] == second.manifest.digests[i]).all()]
        assert (
            parts > 20
            and len(same) > parts - 6
            and lacking == [i for i in range(parts) if i not in same or i >= parts // 2]
        )
        for i in lacking[::-1]:
            site.handle(second.part(i))
        said = header_of(site.handle(second.announcement))
        assert said.kind == "description" and said.answers == header_of(second.request).digest
        assert site.handle(second.announcement) == site.handle(second.request), (
            "it is the request, however it comes"
        )
        # What is whole is not written to: the first, announced anew, has none of its parts, as the second was not cut.
        whole = bytes(site.inbox.assembly.whole)
        third = OutgoingRequest(asking(fed), PART, fed._requests)
        kept = site.inbox.assembly
        assert (
            len(third.lacking(decode(site.handle(third.announcement), fed._roster, recipient="coordinator")))
            == parts
        )
        site.handle(third.part(0))
        assert bytes(kept.whole) == whole == bytes(second.request)


BAD = {
    "a part with other bytes": (
        lambda o, sign: sign(
            DELIVER, {"of": o.manifest.digest, "part": 3}, {"part": np.zeros(PART, np.uint8)}
        ),
        "tampered-part",
    ),
    "a part that is longer": (
        lambda o, sign: sign(
            DELIVER, {"of": o.manifest.digest, "part": 3}, {"part": np.zeros(PART + 1, np.uint8)}
        ),
        "wrong-shape",
    ),
    "the place of another part": (
        lambda o, sign: sign(
            DELIVER, {"of": o.manifest.digest, "part": 3}, {"part": np.frombuffer(o.request, np.uint8)[:PART]}
        ),
        "tampered-part",
    ),
    "a part that there is not": (
        lambda o, sign: sign(
            DELIVER, {"of": o.manifest.digest, "part": 1000}, {"part": np.zeros(PART, np.uint8)}
        ),
        "bad-request",
    ),
    "a part of another request": (
        lambda o, sign: sign(DELIVER, {"of": "ab12", "part": 3}, {"part": np.zeros(PART, np.uint8)}),
        "gone",
    ),
    "a request larger than is read": (
        lambda o, sign: sign(
            ANNOUNCE,
            {"of": "ab12", "length": LIMITS.message_bytes + 1, "part_bytes": 1 << 30},
            {"digests": np.zeros((3, 32), np.uint8)},
        ),
        "oversize",
    ),
    "more parts than digests": (
        lambda o, sign: sign(
            ANNOUNCE,
            {"of": "ab12", "length": LIMITS.message_bytes, "part_bytes": 1},
            {"digests": np.zeros((3, 32), np.uint8)},
        ),
        "wrong-shape",
    ),
    "parts of no length": (
        lambda o, sign: sign(
            ANNOUNCE,
            {"of": "ab12", "length": 1000, "part_bytes": 0},
            {"digests": np.zeros((3, 32), np.uint8)},
        ),
        "bad-parts",
    ),
    "a length that is no number": (
        lambda o, sign: sign(
            ANNOUNCE,
            {"of": "ab12", "length": "1000", "part_bytes": 400},
            {"digests": np.zeros((3, 32), np.uint8)},
        ),
        "bad-parts",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_site_refuses_it_with_its_own_message_takes_no_memory_and_goes_on(name, tmp_path):
    make, code = BAD[name]
    with simple(folder=tmp_path) as (fed, sites, _):
        site, outgoing = sites[0], OutgoingRequest(asking(fed), PART, fed._requests)
        site.handle(outgoing.announcement)
        bad = make(
            outgoing,
            lambda kind, said, sent: fed._requests.concerning(header_of(outgoing.request), kind, said, sent),
        )
        tracemalloc.start()
        said = header_of(site.handle(bad))
        assert tracemalloc.get_traced_memory()[1] < 1e6
        tracemalloc.stop()
        assert (said.kind, said.fields["code"]) == ("refusal", code) and not site.inbox.assembly.here.any()
        for i in range(len(outgoing.manifest.digests)):
            site.handle(outgoing.part(i))
        assert header_of(site.handle(outgoing.announcement)).kind == "description"
    refused = [
        entry.about["code"] for entry in show(tmp_path / NAMES[0] / "audit") if entry.what == "refused"
    ]
    assert refused == [code]


def test_a_request_that_is_not_what_was_signed_is_not_read_though_every_part_is():
    """Whoever has the coordinator's key can announce anything; it is read as any message is, once it is
    there."""
    with simple() as (fed, sites, _):
        for change, code in (
            (lambda raw: raw[:-1] + b"!", "tampered-body"),
            (lambda raw: raw[:-7], "truncated"),
            (lambda raw: raw + b"!", "trailing-bytes"),
        ):
            outgoing = OutgoingRequest(asking(fed), PART, fed._requests)
            outgoing = OutgoingRequest(change(bytes(outgoing.request)), PART, fed._requests)
            sites[0].handle(outgoing.announcement)
            for i in range(len(outgoing.manifest.digests)):
                sites[0].handle(outgoing.part(i))
            assert header_of(sites[0].handle(outgoing.announcement)).fields["code"] == code


def test_a_request_and_its_parts_go_when_nobody_sends_them_any_more():
    with simple() as (fed, _, _):
        outgoing = OutgoingRequest(asking(fed), PART, fed._requests)
        outgoing.part(0)
        gone = weakref.ref(outgoing)
        gc.disable()
        try:
            del outgoing
            assert gone() is None
        finally:
            gc.enable()


def test_an_older_announcement_changes_nothing_unless_it_is_made_anew():
    with simple() as (fed, sites, _):
        old, new = (OutgoingRequest(asking(fed, seed), PART, fed._requests) for seed in (1, 2))
        first = old.announcement
        for announcement in (first, new.announcement):
            sites[0].handle(announcement)
        assert new.announcement is new.announcement, "one for all sites"
        sites[0].handle(new.part(0))
        assert header_of(sites[0].handle(first)).fields["code"] == "replayed"
        assert header_of(sites[0].handle(old.part(1))).fields["code"] == "gone"
        assert sites[0].inbox.assembly.here.sum() == 1
        assert (
            old.lacking(decode(sites[0].handle(old.announcement), fed._roster, recipient="coordinator"))[0]
            == 0
        )
        assert header_of(sites[0].handle(old.part(1))).kind == "delivered"


def test_a_site_takes_no_request_that_is_larger_than_its_memory_and_none_while_it_is_paused(tmp_path):
    """Its policy is asked before a part comes, and the round goes on with the others."""
    policy = 'site = "mayo"\n[tasks]\nmode = "first-use"\n[leaving]\nfields = ["weight", "examples", "data", "loss", "accuracy"]\n'
    (tmp_path / "policy.toml").write_text(policy)
    with simple(folder=tmp_path, policy=tmp_path / "policy.toml") as (fed, sites, transport):
        assert ask(fed) == [0, 1]
        for more, said in (("[caps]\nmemory_gb = 0.000004\n", "caps.memory_gb"), ("", "paused")):
            (tmp_path / "policy.toml").write_text(("" if more else "paused = true\n") + policy + more)
            transport.sent.clear()
            before = sites[AT].inbox.assembly
            assert (
                ask(fed) == [0]
                and said in fed._collector.replies.reasons[AT]
                and sites[AT].inbox.assembly is before
            )
            assert sum(header_of(raw).kind == DELIVER for raw in transport.sent) > 20
    codes = [
        entry.about["code"]
        for entry in show(tmp_path / "coordinator" / "audit")
        if (entry.who, entry.what) == (WHO, "declined")
    ]
    assert codes == ["over-cap", "declined"]
    assert [e.about["code"] for e in show(tmp_path / WHO / "audit") if e.what == "refused"] == codes


def lying(fed, sites, **changes):
    """A site that says something else than that it lacks what it lacks."""

    def lie(raw):
        header, found = decode(raw, fed()._roster, recipient="coordinator")
        if header.kind != "lacking":
            return raw
        header = structs.replace(
            header, **{name: value for name, value in changes.items() if name != "lacking"}
        )
        return encode(
            header,
            {name: changes.get("lacking", lambda x: x)(x) for name, x in found.items()},
            sites()[AT].context.key,
        )

    return lie


LIES = {
    "it lacks nothing": ({"lacking": np.zeros_like}, "bad-parts"),
    "it lacks parts that there are not": ({"lacking": lambda x: np.ones(len(x) + 1, bool)}, "wrong-shape"),
    "it lacks numbers": ({"lacking": lambda x: x.astype(np.float32)}, "wrong-dtype"),
    "it lacks parts of another request": ({"answers": "ab12"}, "wrong-reply"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_site_that_lies_about_what_it_lacks_is_left_out(lie, tmp_path):
    changes, code = LIES[lie]
    box = {}
    forge = lying(lambda: box["fed"], lambda: box["sites"], **changes)

    def fault(send, site, request, n):
        return (
            changed(send(site, request), forge)
            if site == WHO and header_of(request).kind == ANNOUNCE
            else send(site, request)
        )

    with simple(fault, tmp_path, replace(RULES, part_bytes=None)) as (fed, sites, _):
        box |= {"fed": fed, "sites": sites}
        fed.rules = RULES
        assert ask(fed) == [0]
    assert {entry["code"] for entry in entries(tmp_path, "refused")} == {code}


def test_a_site_that_lacks_parts_again_and_again_is_given_up(tmp_path):
    box = {}

    def fault(send, site, request, n):
        if site == WHO and header_of(request).kind == ANNOUNCE and box:
            box["sites"][AT].inbox = Inbox()
        return send(site, request)

    with simple(fault, tmp_path) as (fed, sites, transport):
        box["sites"] = sites
        transport.sent.clear()
        assert ask(fed) == [0]
        # The other site's; then at first, after each try, and, asked for the second time, one too many.
        assert sum(header_of(raw).kind == ANNOUNCE for raw in transport.sent) == 2 + (1 + fetch.TRIES) + 1
    assert [entry["reason"] for entry in entries(tmp_path, "lost")] == ["Stuck"] * 2


@pytest.mark.parametrize("stops", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_link_slower_than_any_timeout_is_waited_for_while_parts_go(stops):
    """All of a request takes longer than there may be silence; a link that stops is not waited for."""
    idle = 0.25

    def fault(send, site, request, n):
        if site != WHO or part_of(request) is None:
            return send(site, request)
        return Future() if stops and part_of(request) > 3 else delayed(send(site, request), 0.05)

    with simple(fault) as (fed, _, _):
        fed.rules = replace(RULES, idle_seconds=idle)
        start = time.monotonic()
        assert ask(fed) == ([0] if stops else [0, 1]) and (stops or time.monotonic() - start > 1.5 * idle)


def test_a_transfer_that_is_cut_at_any_part_ends_and_no_part_that_came_is_sent_again():
    for k in (0, 10, 21):
        came, cut = [], []

        def fault(send, site, request, n, came=came, cut=cut, k=k):
            if site == WHO and part_of(request) is not None:
                if len(came) == k and len(cut) < 2:
                    cut.append(1)
                    return failed()
                came.append(part_of(request))
            return send(site, request)

        with simple(fault, rules=replace(RULES, part_bytes=None)) as (fed, _, _):
            fed.rules = RULES
            assert ask(fed) == [0, 1] and len(came) == len(set(came)) > 20
