"""Where the time to train is limited, a site sends what it has done by then: the numbers of plain loops over
those batches, and says so."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from msgspec import structs

import fedjax_core as fc
from fedjax_core.algorithms.base import uniform
from fedjax_core.data.batches import Plan
from fedjax_core.loops import Loops as Reference
from fedjax_core.sites.audit import show
from fedjax_core.sites.federation import Paused, Rules
from fedjax_core.sites.policy import Leaving
from fedjax_core.sites.policy.budget import Budget
from fedjax_core.sites.protocol.report import PARTIAL, part_of
from fedjax_core.sites.site import client_update
from fedjax_core.sites.site.time_limit import NoStepDone, StepLog
from fedjax_core.sites.study import Study
from fedjax_core.sites.wire.envelope import decode, encode, header_of
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.work import TRAIN
from tests.contracts import assert_close, assert_equal
from tests.sites.faulty import changed, failed
from tests.sites.federations import (
    BATCH,
    COORDINATOR,
    EPOCHS,
    NAMES,
    columns,
    drawing,
    federation,
    site_files,
    whole,
)
from tests.zoo import round_of

ALL = [0, 1, 2, 3]
LIMITED = Rules(train_seconds=10.0)
# that a step of each site takes: by the clock below the first two do 4 of 12 and 2 of 4
SECONDS = (
    3.0,
    6.0,
    1.0,
    1.0,
)
DONE = (4, 2, 2, 2)
LR = 0.1
COMPOSED = fc.compose(fc.algorithms.scaffold(fc.models.linear(features=3), LR, 4))


def at_pace(sites, seconds=SECONDS):
    """The sites' clocks, by which each step takes so long and nothing else any time."""
    for site, one in zip(sites, seconds, strict=True):
        site.context.budget = Budget(None)
        site.context.budget.clock = lambda budget=site.context.budget, one=one: budget.steps * one


def loops(composed, done):
    """Plain loops over the same clients, of whom client i trains on the first `done[i]` of its batches, and
    does all other work whole."""
    found = Reference(
        composed, fc.Clients.from_list(columns(), ids=list(NAMES)), batch_size=BATCH, epochs=EPOCHS
    )
    plan = found.plan

    def batches(who, offsets, addresses, number):
        rows, _ = plan.batches(who, offsets, addresses, number)
        rows = rows[: done[int(who[0])]]
        return rows, np.array([len(rows)])

    limited = SimpleNamespace(batches=batches)
    found.plan = SimpleNamespace(
        batch_size=BATCH, of=lambda work: limited if work == TRAIN else plan.of(work)
    )
    return found


def sgd(data, batches, params, slope):
    """Local steps on these batches of (x @ w + b - y)^2 from params [w, b], each gradient corrected by
    `slope`."""
    for batch in batches:
        x, y = (data[name][batch[batch >= 0]].astype(np.float64) for name in ("x", "y"))
        error = 2 * (x @ params[:-1] + params[-1] - y) / len(y)
        params = params - LR * (np.append(x.T @ error, error.sum()) + slope)
    return params


def scaffold(cohorts, done):
    """The model [w, b] and the sites' control variates after these rounds, site i doing `done[i]` steps:
    SCAFFOLD as in its paper."""
    data, server, c, mine = columns("numbers"), np.zeros(4), np.zeros(4), np.zeros((4, 4))
    everyone = fc.Clients.from_list(data, ids=list(NAMES))
    for number, cohort in enumerate(cohorts):
        ends, before = {}, mine.copy()
        for i in cohort:
            rows, _ = Plan(BATCH, EPOCHS).batches(np.array([i]), everyone.offsets, everyone.addresses, number)
            batches = np.where(rows >= 0, rows - everyone.offsets[i], -1)[: done[i]]
            ends[i] = sgd(data[i], batches, server, c - mine[i])
            mine[i] = mine[i] - c + (server - ends[i]) / (len(batches) * LR)
        server = np.mean([ends[i] for i in cohort], axis=0)
        c = c + np.sum([mine[i] - before[i] for i in cohort], axis=0) / 4
    return server, mine


def flat(params):
    """[..., w, b] of a linear model's parameters."""
    return np.concatenate([np.asarray(params["w"]), np.asarray(params["b"])[..., None]], axis=-1)


def assert_near(got, expected):
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def limited(folder, **settings):
    """A federation whose time to train is limited."""
    return federation(
        COMPOSED, **{"files": site_files("numbers", folder), "folder": folder, "rules": LIMITED, **settings}
    )


def entries(folder, who, what):
    return [entry.about for entry in show(folder / who / "audit", what=what)]


@pytest.mark.parametrize(
    "chunk", [16 << 20, pytest.param(1, marks=pytest.mark.slow)], ids=["at once", "batch by batch"]
)
def test_so_many_steps_are_those_of_a_plain_loop(chunk, monkeypatch):
    monkeypatch.setattr(client_update, "_BYTES", chunk)
    data = columns("numbers")[0]
    clients, plan = fc.Clients.from_list([data], ids=[NAMES[0]]), Study(COMPOSED, BATCH, EPOCHS).plan(None)
    state = COMPOSED.init(jax.random.key(1), 1)
    message, kept = COMPOSED.broadcast(0, state)[0], jax.tree.map(lambda x: np.asarray(x[0]), state.clients)
    draws = drawing(state.key, 3, clients.addresses[0])
    rows, _ = plan.batches(np.zeros(1, np.int64), clients.offsets, clients.addresses, 3)

    def visit(limit):
        return client_update.client_update(
            COMPOSED, 0, plan, clients, message, state.uplink[0], kept, draws, 3, lambda done: None, limit
        )

    for steps in (1, 7, 12):
        found = visit(lambda done, steps=steps: min(3, steps - done))
        moved = sgd(data, rows[:steps], np.zeros(4), 0.0)
        assert_near(flat(found.sent.params), moved)
        assert_near(flat(found.kept.own), -moved / (steps * LR))  # of the steps really made
        seen = np.unique(rows[:steps][rows[:steps] >= 0]).size
        assert [(float(m.total), float(m.weight)) for m in (found.metrics[name] for name in PARTIAL)] == [
            (steps, 12),
            (seen, 23),
        ]
        assert float(found.metrics["loss"].weight) == (rows[:steps] >= 0).sum()
    unlimited = client_update.client_update(
        COMPOSED, 0, plan, clients, message, state.uplink[0], kept, draws, 3
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found[:4], unlimited[:4])
    with pytest.raises(NoStepDone, match=r"no step done in time, so nothing is sent.*Rules.train_seconds"):
        visit(lambda done: 0)


def test_a_round_of_partial_work_is_that_of_plain_loops_and_says_so(tmp_path):
    with limited(tmp_path) as (fed, sites, transport):
        at_pace(sites)
        state = fed.init(jax.random.key(1))
        for cohort in (ALL, [3, 0, 1]):
            state, seen = fed.run(state, cohort)
        server, mine = scaffold((ALL, [3, 0, 1]), DONE)
        assert_near(flat(state.params), server)
        assert_near(flat(whole(fed, sites, state).clients.own), mine)
        assert {name: (float(seen[name].total), float(seen[name].weight)) for name in PARTIAL} == {
            "steps_done": (4 + 2 + 2, 12 + 4 + 2),
            "examples_seen": (16 + 5 + 4, 23 + 5 + 4),
        }
        fields = [header.fields for header in map(header_of, transport.received) if header.kind == "update"]
        assert {(one["examples"], one["weight"]) for one in fields} == {(n, 1.0) for n in (23, 5, 1, 4)}
    told = [one.get("partial") for one in entries(tmp_path, "coordinator", "update")]
    assert sorted(told, key=str) == ["2 of 4 steps"] * 2 + ["4 of 12 steps"] * 2 + [None] * 3
    assert [one["partial"] for one in entries(tmp_path, "coordinator", "round")] == [
        "10 of 20 steps",
        "8 of 18 steps",
    ]
    assert [one.get("partial") for one in entries(tmp_path, NAMES[0], "left")] == [
        None,
        "4 of 12 steps",
        "4 of 12 steps",
    ]
    assert [one.get("partial") for one in entries(tmp_path, NAMES[2], "left")] == [None, None]


@pytest.mark.slow  # default: above
@pytest.mark.parametrize("name", ["fedavg", "scaffold, clip, feedback", "ifca", "mime, clip, feedback"])
def test_reports_count_by_all_examples_however_few_were_seen(name):
    composed = round_of(name, 4)
    with federation(composed, rules=LIMITED) as (fed, sites, transport):
        at_pace(sites)
        state, ours = fed.init(jax.random.key(1)), loops(composed, DONE)
        expected = ours.init(jax.random.key(1))
        for cohort in (ALL, [3, 0, 1]):
            state, seen = fed.run(state, cohort)
            expected, _ = ours.run(expected, cohort)
        assert_close(whole(fed, sites, state), expected)
        assert float(seen["steps_done"].total) == 8
        fields = [header.fields for header in map(header_of, transport.received) if header.kind == "update"]
        assert all(
            one["weight"] in ((1.0,) if "scaffold" in name else (one["examples"], 0.0)) for one in fields
        )


def test_a_site_with_no_step_done_sends_nothing(tmp_path):
    with limited(tmp_path) as (fed, sites, _):
        at_pace(sites)
        ticks = iter(range(0, 1000, 20))
        sites[1].context.budget.clock = lambda: next(ticks)  # all else takes longer than there is
        state, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert float(seen["missing"]) == 1 and state.clients.version.tolist() == [1, 0, 1, 1]
        for site in sites:
            site.context.budget.clock = lambda: next(ticks)
        with pytest.raises(Paused):
            fed.run(state, ALL)
    said, true = entries(tmp_path, "coordinator", "declined")[0], entries(tmp_path, NAMES[1], "refused")[0]
    assert said["code"] == "declined" and said["reason"].endswith(
        "more of it may be needed (Rules.train_seconds)"
    )
    reason = "no step done in time, so nothing is sent; give sites more time, or smaller batches (Rules.train_seconds)"
    assert true == {"code": "no-step", "reason": reason, "said": "declined"}


def test_asked_the_same_again_a_site_does_as_many_steps_whatever_its_clock(tmp_path):
    """All processes end after a round, and the coordinator falls back to the state before it; the sites then
    have all the time there is."""
    found = []
    for seconds in (SECONDS, (0.0,) * 4):
        with limited(tmp_path) as (fed, sites, _):
            at_pace(sites, seconds)
            found.append(whole(fed, sites, fed.run(fed.init(jax.random.key(1)), ALL)[0]))
    assert_equal(*found)
    assert [one["partial"] for one in entries(tmp_path, "coordinator", "round")] == ["10 of 20 steps"] * 2
    with limited(tmp_path, rules=Rules(train_seconds=11.0)) as (fed, sites, _):  # which is another question
        at_pace(sites, (0.0,) * 4)
        assert "partial" not in said_of_round(fed, tmp_path)


def said_of_round(fed, folder):
    fed.run(fed.init(jax.random.key(1)), ALL)
    return entries(folder, "coordinator", "round")[-1]


def test_a_run_goes_on_under_other_rules_and_the_log_has_the_time_of_each_request(tmp_path):
    for rounds, rules in ((1, LIMITED), (2, Rules(train_seconds=7.0)), (3, Rules())):
        with limited(tmp_path, rules=rules) as (fed, sites, _):
            at_pace(sites)
            keeping = {"run_dir": tmp_path / "run", "checkpoint_every": 1, "progress": False}
            history = fc.fit(fed, rounds, cohorts=lambda round: ALL, key=jax.random.key(1), **keeping)
        assert int(history.state.round) == rounds
    asked = [
        one.get("train_seconds")
        for one in entries(tmp_path, "coordinator", "asked")
        if one["kind"] == "train"
    ]
    assert asked == [10.0, 7.0, None]
    assert [one.get("partial") for one in entries(tmp_path, "coordinator", "round")] == [
        "10 of 20 steps",
        "9 of 20 steps",
        None,
    ]


def test_a_site_that_died_before_it_answered_may_do_another_number_of_steps_which_is_recorded(tmp_path):
    died = []

    def fault(send, site, request, n):
        if header_of(request).kind != "train" or site != NAMES[0] or died:
            return send(site, request)
        died.append(n)
        at_pace(box, (1.0, *SECONDS[1:]))
        return failed()

    with limited(tmp_path, fault=fault) as (fed, box, _):
        at_pace(box)
        state = fed.run(fed.init(jax.random.key(1)), ALL)[0]
        assert_near(flat(state.params), scaffold([ALL], (10, *DONE[1:]))[0])
    assert died and entries(tmp_path, "coordinator", "round")[0]["partial"] == "16 of 20 steps"


def test_only_what_trains_is_limited(tmp_path):
    mime = fc.compose(fc.algorithms.mime(fc.models.linear(features=3), optax.sgd(0.01)))
    with federation(mime, files=site_files("numbers", tmp_path), folder=tmp_path, rules=LIMITED) as (
        fed,
        sites,
        transport,
    ):
        at_pace(sites)
        fed.run(fed.init(jax.random.key(1)), ALL)
        asked = next(
            raw for raw in transport.sent if header_of(raw).kind == "train" and header_of(raw).exchange == 0
        )
        assert "train_seconds" not in header_of(asked).fields
        for seconds, said in (
            (5.0, "exchange 0 goes over its examples in order, or over none, so its time"),
            (-1.0, "of seconds above 0"),
        ):
            header, tensors = decode(asked, Roster({"coordinator": COORDINATOR.public}), recipient="sites")
            fields = {**header.fields, "train_seconds": seconds}
            header = structs.replace(
                header, fields=fields, sequence=header.sequence + int(10**12 - seconds), round=5
            )
            reply = header_of(sites[0].handle(encode(header, tensors, COORDINATOR)))
            assert reply.fields["code"] == "bad-request" and said in reply.fields["reason"]
    assert [
        (one["exchange"], "partial" in one)
        for one in entries(tmp_path, NAMES[0], "left")
        if one["kind"] == "update"
    ] == [
        (0, False),
        (1, True),
    ]


def test_with_a_buffer_each_report_is_of_what_was_done(tmp_path):
    averaging = fc.compose(
        fc.algorithms.fedavg(fc.models.linear(features=3), optax.sgd(LR), weighting=uniform)
    )
    files = site_files("numbers", tmp_path)
    with federation(averaging, files=files, folder=tmp_path, rules=LIMITED, buffer=fc.Buffer(4)) as (
        fed,
        sites,
        _,
    ):
        at_pace(sites)
        state, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert_near(flat(state.params), scaffold([ALL], DONE)[0])  # which is FedAvg in its first round
        assert float(seen["steps_done"].total) == 10
    assert entries(tmp_path, "coordinator", "round")[0]["partial"] == "10 of 20 steps"


@pytest.mark.parametrize(
    "change",
    [{"steps_done": 13.0}, {"steps_done": None}, {"examples_seen": 0.0}, {"steps_done.weight": "all"}],
)
def test_a_report_that_says_what_cannot_be_is_set_aside(change, tmp_path):
    def forge(raw):
        header, tensors = decode(raw, box["fed"]._roster, recipient="coordinator")
        return encode(
            structs.replace(header, fields={**header.fields, **change}), tensors, box["sites"][0].context.key
        )

    def fault(send, site, request, n):
        found = send(site, request)
        return changed(found, forge) if (site, header_of(request).kind) == (NAMES[0], "train") else found

    with limited(tmp_path, fault=fault) as (fed, sites, _):
        box = {"fed": fed, "sites": sites}
        at_pace(sites)
        _, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert float(seen["refused"]) == 1
    refused = [one for one in entries(tmp_path, "coordinator", "update") if not one["accepted"]]
    assert [one["code"] for one in refused] == ["bad-steps"] and "the part done and the whole" in refused[0][
        "reason"
    ]


def test_a_policy_lets_the_counts_leave_or_the_site_takes_no_part(tmp_path):
    files = site_files("numbers", tmp_path)
    for i, fields in ((0, ["weight", "examples", "data"]), (1, ["weight", "examples", "data", *PARTIAL])):
        path = tmp_path / f"{NAMES[i]}.toml"
        path.write_text(f'site = "{NAMES[i]}"\n[tasks]\nmode = "first-use"\n[leaving]\nfields = {fields}')
        files[i] = dataclasses.replace(files[i], policy=path)
    with limited(tmp_path, files=files) as (fed, sites, _):
        at_pace(sites)
        state, _ = fed.run(fed.init(jax.random.key(1)), ALL)
        assert state.clients.version.tolist() == [0, 1, 1, 1]
        fed.rules = Rules()
        assert float(fed.run(state, ALL)[1]["clients"]) == 4
    reason = "charite does not let 'examples_seen', 'steps_done' leave (leaving.fields) [field]"
    assert [(one["code"], one["reason"]) for one in entries(tmp_path, "coordinator", "declined")] == [
        ("declined", reason)
    ]
    fields = ("weight", "examples", "data", *PARTIAL)
    # counts of steps and examples are no metrics to be counted
    assert Leaving(fields, clip=1.0, noise=1.0, delta=1e-6).fields == fields


def test_what_is_out_of_bounds_is_refused_at_once(tmp_path):
    for seconds in (0.0, -1.0, float("nan"), 3600.0):
        with pytest.raises(
            ValueError,
            match=r"train_seconds is .* should be above 0 and well below the deadline_seconds of 3600",
        ):
            Rules(train_seconds=seconds)
    (tmp_path / "steps.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"steps.json, which has how many steps .* is damaged: restore it"):
        StepLog(tmp_path)


def test_of_a_site_without_examples_all_is_done():
    found = part_of(np.zeros((0, 4), np.int32), 0, 0)
    assert [(float(one.total), float(one.weight)) for one in found.values()] == [(0, 0), (0, 0)]
