"""Large reports in parts: the bits of reports that come whole, over links that are slow, cut, or change what
they carry."""

import time
import tracemalloc
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from msgspec import structs

from fedjax_core.sites.coordinator.collect import Collector
from fedjax_core.sites.federation import Rules
from fedjax_core.sites.multipart import fetch, manifest
from fedjax_core.sites.multipart.fetch import Fetch, Stuck
from fedjax_core.sites.wire.envelope import decode, encode, header_of
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.sites.wire.tensors import LIMITS
from fedjax_core.sites.wire.transport import bring
from tests.contracts import assert_equal
from tests.sites.faulty import changed, corrupt, delayed, failed
from tests.sites.federations import NAMES, begin_anew, federation
from tests.sites.in_parts import ALL, AT, COMPOSED, WHO, entries, run

PART = 100  # bytes; a report has 18 parts
RULES = Rules(deadline_seconds=300.0, part_bytes=PART)


def part_of(request, round=1):
    """Which part of a report of this round is asked for, None where another thing is."""
    header = header_of(request)
    return header.fields["part"] if header.kind == "part" and header.round == round else None


def trains(request):
    header = header_of(request)
    return header.kind == "train" and header.round == 1


@pytest.fixture(autouse=True)
def whole_requests(monkeypatch):
    """Those in parts have tests of their own: test_requests.py."""
    monkeypatch.setattr(Collector, "outgoing", lambda self, request: None)


@pytest.fixture(scope="module")
def undisturbed():
    """The state after two rounds of reports that come whole, below the length that would be parted and where
    nothing is."""
    found = []
    for part_bytes in (None, 1 << 20):
        with federation(COMPOSED, rules=replace(RULES, part_bytes=part_bytes)) as (fed, _, transport):
            found.append(run(fed)[0])
            assert {header_of(raw).kind for raw in transport.received} == {"description", "update"}
    assert_equal(*found)
    return found[0]


def test_the_bits_are_those_of_reports_that_come_whole_also_where_some_are_brought_twice(
    undisturbed, monkeypatch, tmp_path
):
    """One report may wait for its turn; the first of the cohort is the last to come, so that two others are
    brought again."""
    monkeypatch.setattr("fedjax_core.sites.coordinator.exchange.HELD", 1)
    monkeypatch.setattr("fedjax_core.sites.coordinator.exchange.HELD_BYTES", 0)
    asked = []

    def fault(send, site, request, n):
        if trains(request):
            return delayed(send(site, request), [0.6, 0.0, 0.0, 0.0][NAMES.index(site)])
        if part_of(request) is not None:
            asked.append(site)
        return send(site, request)

    with federation(COMPOSED, fault=fault, rules=RULES, folder=tmp_path) as (fed, _, transport):
        assert_equal(run(fed)[0], undisturbed)
        # `parts` with its digests; and a report is never there whole
        assert max(map(len, transport.received)) < 2500
        assert not any(
            raw.startswith(b"fjx-env") and header_of(raw).kind == "update"
            for raw in transport.received
            if len(raw) > PART
        )
    (first, second) = entries(tmp_path, "came in parts")[:2]
    assert (
        first["parts"] == -(-first["bytes"] // PART) == second["parts"] > 10
        and first["again"] == second["again"] == 0
    )
    assert [asked.count(name) / asked.count(NAMES[0]) for name in NAMES].count(2.0) == 2


def test_a_link_slower_than_any_timeout_is_waited_for_while_parts_come(undisturbed):
    """All of a report takes twice as long as there may be silence, a part a tenth of that; a link that stops
    is not waited for."""
    idle, times, stops = 0.8, [], False

    def fault(send, site, request, n):
        i = part_of(request)
        if i is None or site != WHO:
            return send(site, request)
        times.append(time.monotonic())
        return Future() if stops and i > 3 else delayed(send(site, request), 0.18)

    with federation(COMPOSED, fault=fault, rules=RULES) as (fed, _, _):
        before, _ = run(fed, 1)
        fed.rules = replace(RULES, idle_seconds=idle)
        state, seen = fed.run(before, ALL)
        assert float(seen["clients"]) == 4 and times[-1] - times[0] > 1.5 * idle
        assert_equal(state, undisturbed)
        stops = True
        _, seen = fed.run(before, ALL)
        assert float(seen["clients"]) == 3 and float(seen["missing"]) == 1


@pytest.mark.parametrize(
    "cut", ["for a moment", "for longer than a part is asked for", "as the site begins anew"]
)
def test_what_was_cut_is_taken_up_where_it_was(cut, undisturbed, monkeypatch, tmp_path):
    """The link is lost with two parts under way: the site is asked for those it did not bring, and for no
    other twice."""
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.001)
    came, trained, lost = [], [], 0

    def down():
        if len(came) != 6 or cut == "as the site begins anew":
            return False
        # until the site is asked for the whole once more
        return lost < 3 if cut == "for a moment" else len(trained) < 2

    def fault(send, site, request, n):
        nonlocal lost
        if site == WHO and trains(request):
            trained.append(n)
        i = part_of(request)
        if site != WHO or i is None:
            return send(site, request)
        if down():
            lost += 1
            return failed()
        if len(came) == 6 and cut == "as the site begins anew" and not lost:
            lost += 1
            begin_anew(sites, transport, AT)
        found = send(site, request)
        came.append(i)
        return found

    with federation(COMPOSED, fault=fault, rules=RULES, folder=tmp_path) as (fed, sites, transport):
        assert_equal(run(fed)[0], undisturbed)
        sites[AT].__exit__()
    parted = entries(tmp_path, "came in parts")[1]
    assert sorted(set(came)) == list(range(parted["parts"]))
    if cut == "as the site begins anew":  # the report has another head, in its first parts
        again = [i for i in came if came.count(i) == 2]
        assert len(trained) == 2 and set(again) <= {*range(8)} and len(came) < parted["parts"] + 9
        assert entries(tmp_path, "declined")[0]["code"] == "gone"
    else:
        assert len(came) == parted["parts"] and len(trained) == (1 if cut == "for a moment" else 2)
        told = len([one for one in entries(tmp_path, "lost") if "part" in one])
        # Given up with the first of two parts that was asked for often enough: what becomes of the other is not heard.
        assert (
            told == lost == 3 if cut == "for a moment" else fetch.TRIES <= told <= lost < 2 * fetch.TRIES + 1
        )


def test_of_a_damaged_part_only_that_part_is_asked_for_again(undisturbed, tmp_path):
    asked = []

    def fault(send, site, request, n):
        i = part_of(request)
        if site != WHO or i is None:
            return send(site, request)
        asked.append(i)
        return (
            changed(send(site, request), corrupt) if i == 5 and asked.count(5) == 1 else send(site, request)
        )

    with federation(COMPOSED, fault=fault, rules=RULES, folder=tmp_path) as (fed, _, _):
        assert_equal(run(fed)[0], undisturbed)
    parted = entries(tmp_path, "came in parts")[1]
    assert sorted(asked) == sorted([*range(parted["parts"]), 5]) and parted["again"] == 1
    assert [(one["code"], one["part"]) for one in entries(tmp_path, "refused")] == [("tampered-part", 5)]


LIES = {
    "it is larger than is read": ({"length": LIMITS.message_bytes + 1}, {}, "oversize"),
    "it has more parts than digests": ({"length": 10**9}, {}, "wrong-shape"),
    "it is no larger than a part": ({"length": PART}, {}, "bad-parts"),
    "its length is no number": ({"length": "1000"}, {}, "bad-parts"),
    "its digests are of another type": ({}, {"['digests']": lambda x: x.astype(np.float32)}, "wrong-dtype"),
    "it answers another model": ({"answers": "ab12"}, {}, "wrong-reply"),
    "its digests are others": ({}, {"['digests']": lambda x: np.roll(x, 1, axis=0)}, "tampered-part"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_site_that_lies_about_its_report_is_left_out(lie, tmp_path):
    fields, tensors, code = LIES[lie]

    def forge(raw):
        header, found = decode(raw, fed._roster, recipient="coordinator")
        said = {name: fields.get(name, value) for name, value in header.fields.items()}
        header = structs.replace(header, fields=said, answers=fields.get("answers", header.answers))
        return encode(
            header,
            {name: tensors[name](x) if name in tensors else x for name, x in found.items()},
            sites[AT].context.key,
        )

    def fault(send, site, request, n):
        return (
            changed(send(site, request), forge)
            if site == WHO and header_of(request).kind == "train"
            else send(site, request)
        )

    with federation(COMPOSED, fault=fault, rules=RULES, folder=tmp_path) as (fed, sites, _):
        _, seen = run(fed, 1)
        assert float(seen["clients"]) == 3
    assert entries(tmp_path, "refused")[0]["code"] == code


class Held:
    """A transport whose replies come when the test says so."""

    def __init__(self):
        self.asked, self.open, self.most = [], [], 0

    def send(self, site, request):
        found = Future()
        self.asked.append(site)
        self.open.append((site, request, found))
        self.most = max(self.most, len(self.open))
        return found

    def deliver(self, sites):
        """The parts that these sites were asked for come, the last one first."""
        now, self.open = self.open, []
        for site, size, future in reversed(now):
            if site in sites:
                future.set_result(bytes([int(site)]) * size)
            else:
                self.open.append((site, size, future))


def transfers(order):
    """(the transport, the transfers, the future of each reply) of as many sites, whose reply is its position
    1,050 times."""
    transport = Held()
    moving = Fetch(transport, Roster({}), order, lambda of, i: 50 if i == 10 else PART, lambda *about: None)
    replies = {}
    for at in sorted(order):
        digests = manifest.digests_of(bytes([at]) * 1050, PART)
        replies[at] = moving.begin(at, str(at), manifest.Manifest(str(at), 1050, PART, digests))
    return transport, moving, replies


def bring_all(transport, moving, replies):
    """The replies, whose parts come as they are asked for."""
    found = {}
    while len(found) < len(replies):
        transport.deliver({str(at) for at in replies})
        done = moving.wait(replies.values(), time.monotonic(), None)
        found |= {
            at: bytes(bring(future)) for at, future in replies.items() if future in done and at not in found
        }
    return found


def test_so_many_are_brought_at_a_time_and_those_first_that_are_wanted_first():
    transport, moving, replies = transfers(order=[7, 6, 5, 4, 3, 2, 1, 0])
    assert bring_all(transport, moving, replies) == {at: bytes([at]) * 1050 for at in range(8)}
    assert transport.most == fetch.AT_ONCE * fetch.IN_FLIGHT
    # four were there before the others
    assert list(dict.fromkeys(transport.asked)) == [
        "0",
        "1",
        "2",
        "3",
        "7",
        "6",
        "5",
        "4",
    ]
    with pytest.raises(IndexError):  # the future keeps nothing of it
        bring(replies[0])


def test_what_does_not_go_on_makes_room_for_others():
    transport, moving, replies = transfers(order=range(6))
    stuck = {replies.pop(at) for at in range(4)}
    assert moving.wait(replies.values(), time.monotonic() + 5, 0.01) == set()
    assert all(isinstance(future.exception(), Stuck) for future in stuck)
    assert bring_all(transport, moving, replies) == {at: bytes([at]) * 1050 for at in (4, 5)}


def test_a_length_that_is_only_said_takes_no_memory():
    transport = Held()
    tracemalloc.start()
    moving = Fetch(transport, Roster({}), [0], lambda of, i: PART, lambda *about: None)
    future = moving.begin(
        0, "0", manifest.Manifest("0", LIMITS.message_bytes, 8 << 20, np.zeros((256, 32), np.uint8))
    )
    transport.deliver({"0"})
    assert moving.wait({future}, time.monotonic(), None) == set() and len(transport.asked) == 4
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
