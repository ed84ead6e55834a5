"""The masked sum is the plain one, to the last bit, whoever drops out; below the threshold nothing comes out;
what a site refuses."""

import itertools
from collections import Counter
from functools import partial

import numpy as np
import pytest
from msgspec.structs import replace
from scipy.stats import chi2

from fedjax_core.secure_aggregation import client as client_module
from fedjax_core.secure_aggregation import graph
from fedjax_core.secure_aggregation import server as server_module
from fedjax_core.secure_aggregation.client import PURPOSE, Client
from fedjax_core.secure_aggregation.messages import Refusal, Roster, Round, Survivors, Terms, TooFew, Wanted
from fedjax_core.secure_aggregation.server import Server
from fedjax_core.secure_aggregation.spent import Spent
from tests.secure_aggregation.parties import (
    KEYS,
    NAMES,
    STAGES,
    aggregate,
    fits,
    party,
    plain,
    terms,
    vectors,
)

HALF, THIRDS = (1, 2), (2, 3)


def ends(counts: Counter, n: int, said: Terms) -> str | None:
    """The stage in which a round of n sites ends without a sum, where so many answer each number of stages;
    None: it does not."""
    there = [sum(k for last, k in counts.items() if last > stage) for stage in range(5)]
    if there[0] < 2:
        return "advertise"
    return next((STAGES[s] for s in range(1, 5) if there[s] < said.needed(there[0])), None)


@pytest.mark.parametrize("share", [HALF, THIRDS])
@pytest.mark.parametrize(
    "n", [2, 3, pytest.param(4, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)]
)
def test_every_pattern_of_drop_outs(n, share):
    every_pattern(n, share, itertools.product(range(6), repeat=n))


@pytest.mark.parametrize("share", [HALF, THIRDS])
@pytest.mark.parametrize("n", [4, 5])
def test_one_pattern_of_each_kind(n, share):
    """For each choice of how many drop out at each stage; who they are is drawn."""
    rng = np.random.default_rng(0)
    kinds = itertools.combinations_with_replacement(range(6), n)
    every_pattern(n, share, (rng.permutation(kind).tolist() for kind in kinds))


def every_pattern(n, share, patterns):
    said, names = terms(length=3, share=share), NAMES[:n]
    given, opened = vectors(names, length=3), 0
    for pattern in patterns:
        expected = ends(Counter(pattern), n, said)
        clients, server = party(names, said)
        last = dict(zip(names, pattern, strict=True))
        if expected is None:
            total, there = aggregate(clients, server, given, last)
            assert there == tuple(name for name in names if last[name] > 2)
            np.testing.assert_array_equal(total, plain(given, there))
            opened += 1
        else:
            with pytest.raises(TooFew, match=f"ended in stage '{expected}'") as caught:
                aggregate(clients, server, given, last)
            assert caught.value.stage == expected
    assert opened > 0


@pytest.mark.parametrize(("n", "gone"), [(10, {2: 1, 3: 1, 4: 1}), (50, {0: 1, 1: 3, 2: 5, 3: 4, 4: 3})])
def test_ten_and_fifty_sites(n, gone):
    names = NAMES[:n]
    whom = np.random.default_rng(n).permutation(names).tolist()
    last = {whom.pop(): stage for stage, k in gone.items() for _ in range(k)}
    given = vectors(names, length=1000)
    clients, server = party(names, terms(length=1000), minimum=3)
    total, there = aggregate(clients, server, given, last)
    assert len(there) == n - sum(k for stage, k in gone.items() if stage < 3)
    np.testing.assert_array_equal(total, plain(given, there))


def test_above_a_hundred_sites_each_has_few_peers_and_the_sum_is_the_same(monkeypatch):
    """With the limits at 10 and 8, as 101 sites of 50 peers take some seconds; these are in the slow test
    below."""
    few = partial(graph.peers, full=10, degree=8)
    monkeypatch.setattr(client_module, "peers", few)
    monkeypatch.setattr(server_module, "peers", few)
    last = {NAMES[3]: 2, NAMES[11]: 4}
    given = vectors(NAMES[:16])
    clients, server = party(NAMES[:16], terms(share=HALF))
    total, there = aggregate(clients, server, given, last)
    np.testing.assert_array_equal(total, plain(given, there))
    assert all(len(c._graph[name]) == 8 for name, c in clients.items())


@pytest.mark.slow
def test_a_hundred_and_twenty_sites_with_fifty_peers_each():
    names = NAMES[:120]
    given = vectors(names)
    clients, server = party(names, terms())
    total, there = aggregate(clients, server, given, {n: 2 for n in names[::12]})
    assert len(there) == 110 and len(clients[NAMES[1]]._graph[NAMES[1]]) == 50
    np.testing.assert_array_equal(total, plain(given, there))


def up_to(stage: str, names=NAMES[:4], **changes):
    """A round of some sites up to a stage: clients, server, and the request that comes next, for each
    site."""
    said = terms(share=HALF)
    clients, server = party(names, said, **changes)
    given = vectors(names)
    roster = server.roster(c.advertise() for c in clients.values())
    if stage == "share":
        return clients, server, dict.fromkeys(names, roster)
    boxes = server.route(c.share(roster) for c in clients.values())
    if stage == "mask":
        return clients, server, boxes
    for name in names[1:]:  # the first one drops out
        server.add(clients[name].mask(boxes[name], given[name]))
    clients[names[0]].mask(boxes[names[0]], given[names[0]])
    if stage == "confirm":
        return clients, server, dict.fromkeys(names, server.survivors())
    survivors = server.survivors()
    return clients, server, server.wanted(clients[name].confirm(survivors) for name in names[1:])


def refused(code: str, call, *args):
    with pytest.raises(Refusal) as caught:
        call(*args)
    assert caught.value.code == code, caught.value
    return str(caught.value)


A, B, C, D = NAMES[:4]


def test_both_shares_of_one_peer_are_refused_by_name():
    clients, _server, wanted = up_to("reveal")
    both = replace(wanted[B], keys=(A, C))
    assert C in refused("both-shares", clients[B].reveal, both)
    refused("both-shares", clients[B].reveal, replace(wanted[B], seeds=(A, B, C, D)))
    # of who is in the sum the other kind
    refused("shares", clients[B].reveal, replace(wanted[B], seeds=(B, D), keys=(A, C)))
    answer = clients[B].reveal(wanted[B])  # the right question still gets its answer
    assert set(answer.seeds) == {B, C, D} and set(answer.keys) == {A}
    refused("two-wanted", clients[B].reveal, replace(wanted[B], seeds=(), keys=(B, C, D)))


def test_two_rosters_and_two_sets_of_survivors_are_refused():
    clients, _server, rosters = up_to("share")
    first = clients[A].share(rosters[A])
    assert clients[A].share(rosters[A]) is first  # the same again
    refused("two-roster", clients[A].share, Roster(rosters[A].sites[:3]))
    clients, _server, survivors = up_to("confirm")
    clients[B].confirm(survivors[B])
    refused("two-survivors", clients[B].confirm, Survivors((A, B, C, D)))


def test_sites_that_were_shown_other_sums_find_out_before_anything_is_revealed():
    clients, server, survivors = up_to("confirm")
    said = [
        clients[B].confirm(survivors[B]),
        clients[C].confirm(survivors[C]),
        clients[D].confirm(Survivors((A, B, C, D))),
    ]
    with pytest.raises(TooFew, match="stage 'confirm': 2 sites"):
        server.wanted(said)  # an honest server does not even ask
    asked = Wanted(tuple(said), (B, C, D), (A,))
    assert D in refused("confirmed", clients[B].reveal, asked)


def test_the_same_vector_is_never_sent_under_other_masks_nor_another_one_under_the_same():
    clients, _server, boxes = up_to("mask")
    x = vectors([A])[A]
    first = clients[A].mask(boxes[A], x)
    assert clients[A].mask(boxes[A], x + np.uint32(1)) is first
    fewer = replace(boxes[A], senders=(A, B, C), boxes={n: boxes[A].boxes[n] for n in (B, C)})
    refused("two-boxes", clients[A].mask, fewer, x)


def test_a_round_is_not_played_again():
    spent, said = Spent(), terms()
    make = lambda round: Client(A, replace(said, round=round), KEYS[A].sign, fits, spent)  # noqa: E731
    make(said.round)
    refused("replayed", make, said.round)
    make(replace(said.round, attempt=1))  # after one that was not opened
    refused("replayed", make, said.round)
    make(replace(said.round, round=4))


def test_a_round_is_opened_again_only_as_the_very_same_sum():
    names, spent = NAMES[:4], {name: Spent() for name in NAMES[:4]}
    given = vectors(names)

    def attempt(number, vector=given, last=None):
        said = terms(share=HALF, attempt=number)
        clients = {n: Client(n, said, KEYS[n].sign, fits, spent[n], 2) for n in names}
        return aggregate(clients, Server(said, fits), vector, last)[0]

    first = attempt(0, last={D: 2})
    np.testing.assert_array_equal(first, plain(given, names[:3]))
    np.testing.assert_array_equal(attempt(1, last={D: 2}), first)
    # with D in it, whose report would be the difference
    assert "differ by single reports" in refused("replayed", attempt, 2)
    # or with another report of A
    refused("replayed", attempt, 3, given | {A: given[A] + np.uint32(1)}, {D: 2})


def test_what_was_opened_is_on_the_disk_and_a_torn_line_is_not(tmp_path):
    path, round = tmp_path / "site" / "opened.jsonl", Round("heart", 3, attempt=7)
    spent = Spent(path)
    spent.begin(round)
    spent.open(round, b"abc")
    with open(path, "ab") as file:
        file.write(b'["opened", "heart", 4,')
    again = Spent(path)
    refused("replayed", again.begin, round)
    refused("replayed", again.check, round, b"abd")
    again.check(round, b"abc")
    again.open(replace(round, round=4), b"abd")
    assert len(path.read_text().splitlines()) == 3 and path.stat().st_mode & 0o777 == 0o600
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="is damaged: restore it"):
        Spent(path)


def test_keys_of_another_round_or_of_nobody_are_refused():
    clients, _server, rosters = up_to("share")
    sites = rosters[A].sites
    another, _ = party([B], terms(share=HALF, round=2))
    swapped = {
        "of another round": another[B].advertise(),
        "of the server's making": replace(sites[1], mask_key=sites[1].box_key[::-1]),
        "of another site": replace(sites[2], name=B),
        "that C signed for B": replace(
            sites[1], signature=KEYS[C].sign(PURPOSE, sites[1].signed(clients[A].terms))
        ),
    }
    for which, one in swapped.items():
        said = refused("swapped-key", clients[A].share, Roster((sites[0], one, *sites[2:])))
        assert B in said, which
    assert "advertised" in refused("swapped-key", clients[A].share, Roster(sites[1:]))  # without its own
    refused("roster", clients[A].share, Roster(sites[::-1]))
    honest = Server(clients[A].terms, fits)
    # left out
    assert [s.name for s in honest.roster([sites[0], swapped["of another round"], sites[2]]).sites] == [
        A,
        C,
    ]


def test_fewer_sites_than_a_site_demands_are_refused_at_each_stage():
    clients, _server, rosters = up_to("share", minimum=5)
    assert "demands at least 5" in refused("too-few", clients[A].share, rosters[A])
    clients, _server, boxes = up_to("mask", minimum=4)
    fewer = replace(boxes[A], senders=(A, B, C), boxes={n: boxes[A].boxes[n] for n in (B, C)})
    refused("too-few", clients[A].mask, fewer, vectors([A])[A])
    clients, _server, survivors = up_to("confirm", minimum=4)
    refused("too-few", clients[B].confirm, survivors[B])
    clients, _server, wanted = up_to("reveal")
    refused("too-few", clients[B].reveal, replace(wanted[B], confirmed=wanted[B].confirmed[:2]))
    assert Client(A, terms(), KEYS[A].sign, fits, Spent())._minimum == 3


def test_survivors_that_hang_together_by_nobody_are_refused(monkeypatch):
    """A square of which two opposite corners drop out: masks would cancel at each corner by itself."""
    monkeypatch.setattr(
        client_module, "peers", lambda names, session: {A: {B, D}, B: {A, C}, C: {B, D}, D: {A, C}}
    )
    monkeypatch.setattr(server_module, "peers", client_module.peers)
    clients, _server, boxes = up_to("mask", minimum=2)
    monkeypatch.setattr(Terms, "needed", lambda self, number: 1)
    clients[A].mask(boxes[A], vectors([A])[A])
    refused("in-parts", clients[A].confirm, Survivors((A, C)))


def test_what_comes_out_of_order_is_refused():
    clients, server, boxes = up_to("mask")
    refused("out-of-order", clients[A].confirm, Survivors((A, B, C)))
    refused(
        "survivors",
        lambda: [clients[A].mask(boxes[A], vectors([A])[A]), clients[A].confirm(Survivors((B, C, D)))],
    )
    with pytest.raises(ValueError, match=r"this round adds uint32\[8\], got int64\[8\]"):
        clients[B].mask(boxes[B], np.zeros(8, np.int64))
    tampered = replace(boxes[C], boxes={**boxes[C].boxes, A: bytes(148)})
    assert A in refused("boxes", clients[C].mask, tampered, vectors([C])[C])
    x = vectors([A])[A]
    server.add(clients[A].mask(boxes[A], x))
    refused("masked", server.add, clients[A].mask(boxes[A], x))


def test_a_false_share_is_found_and_there_is_no_sum():
    clients, server, wanted = up_to("reveal")
    said = [clients[name].reveal(wanted[name]) for name in wanted]
    false = replace(said[0], seeds={**said[0].seeds, C: bytes(66)})
    assert C in refused("false-share", server.total, [false, *said[1:]])


def test_half_of_the_sites_are_too_few_whatever_terms_say():
    with pytest.raises(ValueError, match="from 1/2 to below 1"):
        Terms(Round("heart", 1), 8, (2, 5))
    assert [terms(share=THIRDS).needed(n) for n in (2, 3, 4, 5, 6, 9, 10)] == [2, 3, 3, 4, 5, 7, 7]
    assert [terms(share=HALF).needed(n) for n in (2, 3, 4, 5, 10)] == [2, 2, 3, 3, 6]


@pytest.mark.parametrize("report", [np.zeros, lambda n, dtype: np.full(n, 7, dtype)])
def test_what_a_site_sends_has_the_bytes_of_chance(report):
    """Chi-square over the 256 values of a byte; of a report that is all one number."""
    clients, server = party(NAMES[:3], terms(length=2**16))
    roster = server.roster(c.advertise() for c in clients.values())
    boxes = server.route(c.share(roster) for c in clients.values())
    seen = [clients[name].mask(boxes[name], report(2**16, np.uint32)).vector for name in clients]
    for vector in seen:
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert chi2.sf(statistic, 255) > 1e-6
    assert abs(np.mean(np.bitwise_count(seen[0] ^ seen[1])) / 32 - 0.5) < 0.005
