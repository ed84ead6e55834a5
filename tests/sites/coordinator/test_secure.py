"""Secure aggregation at real sites: the sum is that of lanes to the last bit, whoever drops out, and nothing
else is sent."""

import jax
import numpy as np
import pytest
from msgspec.structs import replace
from scipy.stats import chi2

import fedjax_core as fc
from fedjax_core.secure_aggregation.messages import Wanted
from fedjax_core.sites.audit import show
from fedjax_core.sites.federation import Paused, Rules
from fedjax_core.sites.protocol.kinds import CONFIRM, MASK, REVEAL, SHARE
from fedjax_core.sites.protocol.secure import CANNOT_SEE, read, written
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.wire.envelope import decode, encode, header_of
from fedjax_core.sites.wire.identity import Roster, SiteKey
from fedjax_core.sites.wire.trees import to_tensors
from tests.sites.faulty import failed
from tests.sites.federations import (
    BATCH,
    COORDINATOR,
    EPOCHS,
    NAMES,
    begin_anew,
    federation,
    simulator,
    site_files,
)
from tests.zoo import fedavg

RING = fc.uplink.secure(bound=0.5, bits=12, weights=2**8)
SECURE = fedavg(uplink=fc.uplink.chain(fc.uplink.clip(0.5), RING), aggregator=fc.aggregators.total())
COHORTS = [[0, 1, 2, 3], [3, 0, 1], [2, 1, 0, 3]]
STAGES = ("train", SHARE, MASK, CONFIRM, REVEAL)
EVERYONE, WITHOUT = (0, 1, 2, 3), (0, 2, 3)


def params(state):
    return jax.tree.map(np.asarray, state.params)


def assert_same(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def begun(fed):
    return fed.init(jax.random.key(1))


@pytest.fixture(scope="module")
def lanes():
    return simulator(SECURE)


@pytest.fixture(scope="module")
def after(lanes):
    """{cohort: the model after a first round of these sites in lanes}."""
    return {cohort: params(lanes.run(begun(lanes), list(cohort))[0]) for cohort in (EVERYONE, WITHOUT)}


def sum_of(stage):
    """Who is in the sum where the second site drops out at this stage."""
    return EVERYONE if stage in (CONFIRM, REVEAL) else WITHOUT


def losing(stage, *names):
    """A fault by which what is asked of these sites at this stage is lost."""
    return lambda send, site, request, n: (
        failed() if header_of(request).kind == stage and site in names else send(site, request)
    )


def test_sites_end_bit_for_bit_where_lanes_end_and_send_what_looks_like_chance(lanes, tmp_path):
    expected = begun(lanes)
    with federation(SECURE, folder=tmp_path) as (fed, sites, transport):
        state = begun(fed)
        for cohort in COHORTS:
            state, got = fed.run(state, cohort)
            expected, _ = lanes.run(expected, cohort)
            assert float(got["clients"].total) == len(cohort) and float(got["missing"].total) == 0
        assert_same(params(state), params(expected))
        roster = Roster({site.name: site.context.key.public for site in sites})
        said = [decode(raw, roster, recipient=COORDINATOR.name) for raw in transport.received]
    keys = [one for one in said if one.header.kind == "update"]
    assert {tuple(one.tensors) for one in keys} == {("['message']",)}
    assert all(set(one.header.fields) == {"examples", "data"} for one in keys), (
        "neither a weight nor a metric of one site"
    )
    masked = [one.tensors["['vector']"] for one in said if one.header.kind == "masked"]
    assert len(masked) == 11 and all(one.header.fields == {} for one in said if one.header.kind == "masked")
    counts = np.bincount(np.concatenate(masked).view(np.uint8), minlength=256)
    assert chi2.sf(((counts - counts.mean()) ** 2 / counts.mean()).sum(), 255) > 1e-6
    summed = [one.about for one in show(tmp_path / "coordinator" / "audit", what="summed")]
    assert [one["sites"] for one in summed] == [4, 3, 4] and {one["secure"] for one in summed} == {CANNOT_SEE}
    left = [one.about for one in show(tmp_path / NAMES[0] / "audit", what="left")]
    assert [one["kind"] for one in left if one["kind"] != "description"] == [
        "update",
        "shared",
        "masked",
        "confirmed",
        "revealed",
    ] * 3
    assert all(CANNOT_SEE in one["secure"] for one in left if one["kind"] in ("masked", "revealed"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_that_drops_out_at_any_stage_is_recovered(stage, after):
    with federation(SECURE, fault=losing(stage, NAMES[1])) as (fed, _, _):
        state, got = fed.run(begun(fed), EVERYONE)
        assert_same(params(state), after[sum_of(stage)])
        assert float(got["clients"].total) == len(sum_of(stage))
        lacked = fed.lacked(1)
    assert lacked == (
        {} if stage in (CONFIRM, REVEAL) else {NAMES[1]: "no reply came through (ConnectionError)"}
    )


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_the_round_ends_by_name_and_nothing_comes_out(stage, after, tmp_path):
    """Two of four: two more than half must stay. The round that is run again ends as if nothing had been."""
    lost = {"now": True}

    def fault(send, site, request, n):
        return (
            losing(stage, NAMES[1], NAMES[2])(send, site, request, n) if lost["now"] else send(site, request)
        )

    with federation(SECURE, folder=tmp_path, fault=fault) as (fed, _, _):
        state = begun(fed)
        with pytest.raises(
            Paused, match=rf"{'2 of 4 sites reported' if stage == 'train' else stage}.*{NAMES[1]}.*unchanged"
        ) as caught:
            fed.run(state, EVERYONE)
        assert NAMES[2] in str(caught.value)
        entries = list(show(tmp_path / "coordinator" / "audit"))
        assert [one for one in entries if one.what in ("summed", "round")] == []
        assert [NAMES[1] in one.about["missing"] for one in entries if one.what == "paused"] == [True]
        lost["now"] = False
        assert_same(params(fed.run(state, EVERYONE)[0]), after[EVERYONE])


class Killed(Exception):
    """Where the coordinator's process ends."""


def coordinator_killed(folder, stage, at):
    """A round whose coordinator is killed at this stage, once `at` sites were asked; then all begin anew from
    their disks."""
    asked = []

    def fault(send, site, request, n):
        if header_of(request).kind == stage:
            if len(asked) == at:
                raise Killed
            asked.append(send(site, request))
            asked[-1].result()
            return asked[-1]
        return send(site, request)

    with pytest.raises(Killed), federation(SECURE, folder=folder, fault=fault) as (fed, _, _):
        fed.run(begun(fed), EVERYONE)
    with federation(SECURE, folder=folder) as (fed, _, _):
        return params(fed.run(begun(fed), EVERYONE)[0])


def site_killed(folder, stage, answered):
    """A round in which a site is killed at this stage, before or once it has `answered`, and is there again,
    from its disk, at once."""
    killed = []

    def fault(send, site, request, n):
        if header_of(request).kind != stage or site != NAMES[1] or killed:
            return send(site, request)
        killed.append(stage)
        reply = send(site, request) if answered else failed()
        if answered:
            reply.result()
        begin_anew(*ends, 1)
        return reply if answered else send(site, request)

    with federation(SECURE, folder=folder, fault=fault) as (fed, *ends):
        state, got = fed.run(begun(fed), EVERYONE)
        there = EVERYONE if float(got["clients"].total) == 4 else WITHOUT
        second, _ = fed.run(state, EVERYONE)
        assert int(second.round) == 2
        ends[0][1].__exit__()
    return params(state), there


def test_a_coordinator_and_a_site_that_are_killed(after, tmp_path):
    assert_same(coordinator_killed(tmp_path / "coordinator", REVEAL, 2), after[EVERYONE])
    got, there = site_killed(tmp_path / "site", MASK, answered=True)
    assert there == EVERYONE, "its masked report was there"
    assert_same(got, after[there])


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 1, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_a_coordinator_killed_at_any_stage_goes_on_from_its_disk(stage, at, after, tmp_path):
    assert_same(coordinator_killed(tmp_path, stage, at), after[EVERYONE])


@pytest.mark.slow
@pytest.mark.parametrize("answered", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_a_site_killed_at_any_stage_is_recovered_or_there_again(stage, answered, after, tmp_path):
    got, there = site_killed(tmp_path, stage, answered)
    # the first stage at which it knows nothing of the attempt any more
    later = STAGES.index(stage) + answered
    assert there == (EVERYONE if later > STAGES.index(MASK) or later == 0 else WITHOUT)
    assert_same(got, after[there])


def test_a_round_that_is_run_again_from_a_checkpoint_gives_the_same_sum_of_the_same_sites(after, tmp_path):
    """The first time one site dropped out; it is there again, and still not in the sum, as the difference
    would be its report."""
    lost = {"stage": MASK}
    with federation(SECURE, folder=tmp_path, fault=lambda *sent: losing(lost["stage"], NAMES[1])(*sent)) as (
        fed,
        _,
        _,
    ):
        fed.run(begun(fed), EVERYONE)
    # each masked report has several parts
    with federation(SECURE, folder=tmp_path, rules=Rules(part_bytes=400)) as (
        fed,
        _,
        _,
    ):
        state = begun(fed)
        assert_same(params(fed.run(state, EVERYONE)[0]), after[WITHOUT])
        with pytest.raises(
            Paused,
            match=f"was opened before, as the sum of charite, kyoto, oslo, .*: {NAMES[2]} must be in its cohort",
        ):
            fed.run(state, [0, 1, 3])
        fed._rounds._under_masks["opened"]._all.clear()  # a coordinator that forgets, or lies
        with pytest.raises(Paused, match="opened before, as another sum"):
            fed.run(state, EVERYONE)
    refused = [one.about["code"] for one in show(tmp_path / NAMES[0] / "audit", what="refused")]
    assert refused == ["replayed"]


def test_a_site_that_is_asked_for_both_shares_of_one_peer_refuses_and_records_it(after, tmp_path):
    def both(send, site, request, n):
        asked = decode(request, Roster({COORDINATOR.name: COORDINATOR.public}), recipient="sites")
        if asked.header.kind != REVEAL or site != NAMES[0]:
            return send(site, request)
        wanted = replace(read(asked.tensors, Wanted), keys=(NAMES[2],))
        return send(
            site,
            encode(
                replace(asked.header, key="", size=0, digest=""), to_tensors(written(wanted)), COORDINATOR
            ),
        )

    with federation(SECURE, folder=tmp_path, fault=both) as (fed, _, _):
        assert_same(params(fed.run(begun(fed), EVERYONE)[0]), after[EVERYONE])  # by the shares of the others
    refused = [one.about for one in show(tmp_path / NAMES[0] / "audit", what="refused")]
    assert [one["code"] for one in refused] == ["both-shares"] and NAMES[2] in refused[0]["reason"]
    said = [
        one.about["code"] for one in show(tmp_path / "coordinator" / "audit", what="declined", who=NAMES[0])
    ]
    assert said == ["both-shares"]


def test_a_policy_asks_for_so_many_sites_in_a_sum(tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(
        f'site = "{NAMES[0]}"\ntasks.mode = "first-use"\nleaving = {{ secure = true }}\nevaluation = {{ models = "any" }}\n'
        "minimum = { sites = 4 }\n"
    )
    files = site_files()
    files[0] = SiteFile(name=NAMES[0], data=files[0].data, folder=tmp_path / "site", policy=policy)
    with federation(SECURE, files=files) as (fed, _, _):
        state, _ = fed.run(begun(fed), EVERYONE)
        with pytest.raises(
            Paused, match=rf"{NAMES[0]}: .*3 sites in stage 'roster', and '{NAMES[0]}' demands at least 4"
        ):
            fed.run(state, [0, 1, 2])


def test_a_real_site_knows_the_others_by_its_own_roster(tmp_path):
    """One of whose peers the coordinator shows another key than the roster has."""
    files, keys = site_files(folder=tmp_path), {name: SiteKey.make(name) for name in NAMES}
    for one in files:
        keys[one.name].save(one.folder)
    stranger = SiteKey.make(NAMES[1])
    lines = [key.line for name, key in keys.items() if name != NAMES[1]] + [stranger.line]
    (tmp_path / "roster.toml").write_text("[keys]\n" + "\n".join(lines) + "\n")
    files[0] = SiteFile(
        name=NAMES[0], data=files[0].data, folder=files[0].folder, roster=tmp_path / "roster.toml"
    )
    with federation(SECURE, files=files) as (fed, _, _):
        fed.run(begun(fed), EVERYONE)
        assert (
            NAMES[0] in fed.lacked(1)
            and f"the keys of '{NAMES[1]}' in the roster are not signed" in fed.lacked(1)[NAMES[0]]
        )
    (tmp_path / "site.toml").write_text(f'name = "{NAMES[0]}"\ndata = "x:y"\n')
    bare = SiteFile(name=NAMES[0], data=files[0].data, file=tmp_path / "site.toml")
    with (
        pytest.raises(ValueError, match=r"its file names no roster of the other sites' keys"),
        federation(SECURE, files=[bare, *files[1:]]),
    ):
        pass


def test_what_could_never_be_summed_is_refused_before_a_site_is_asked():
    with federation(SECURE) as (fed, _, transport):
        state, before = begun(fed), len(transport.sent)
        with pytest.raises(
            Paused, match="2 sites can be asked, and no site takes part in a sum of fewer than 3"
        ):
            fed.run(state, [0, 1])
        with pytest.raises(
            ValueError,
            match=r"a site of this cohort was drawn 2 times, and chain\(clip, secure\) hides its report",
        ):
            fed.run(state, fc.Cohort(np.array([0, 1, 2]), np.array([1, 2, 1])))
        fed._collector.sizes = np.array([65, 5, 1, 4])
        with pytest.raises(
            ValueError,
            match=r"weights=256\) gives each of 4 sites a weight of at most 64, and .* charite up to 65: make",
        ):
            fed.run(state, EVERYONE)
        assert len(transport.sent) == before
    with pytest.raises(ValueError, match="of 2, each could be told from the others"):
        fc.Federation(SECURE, site_files()[:2], batch_size=BATCH, epochs=EPOCHS, transport="in-process")
    with pytest.raises(
        ValueError, match=r"goes by who else is in the cohort .*: leave that stage out; or leave buffer= out"
    ):
        fc.Federation(
            SECURE,
            site_files(),
            batch_size=BATCH,
            epochs=EPOCHS,
            transport="in-process",
            buffer=fc.Buffer(size=3),
        )


@pytest.mark.slow
def test_a_report_beyond_the_ring_stays_and_the_reason_is_for_the_sites_staff(tmp_path):
    tight = fedavg(
        uplink=fc.uplink.secure(bound=1e-3, bits=12, weights=2**8), aggregator=fc.aggregators.total()
    )
    with (
        federation(tight, folder=tmp_path) as (fed, _, _),
        pytest.raises(Paused, match="declined, for a reason that is for its staff"),
    ):
        fed.run(begun(fed), EVERYONE)
    (refused,) = [one.about for one in show(tmp_path / NAMES[0] / "audit", what="refused")]
    assert refused["code"] == "out-of-ring" and "add fc.uplink.clip(0.001)" in refused["reason"]
