"""A federation is the simulator with its clients elsewhere: the same numbers, for all that the zoo has, and
after any interruption."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.cli import main
from fedjax_core.metrics import summary
from fedjax_core.sites.audit import show
from fedjax_core.sites.federation import Paused, Rules
from fedjax_core.sites.protocol.report import LEFT
from fedjax_core.sites.protocol.request import RunContext
from fedjax_core.sites.wire.canonical import in_lines, is_scalar, of_lines
from fedjax_core.sites.wire.envelope import decode, header_of
from tests.contracts import assert_close, assert_equal, entries_of
from tests.sites.faulty import failed
from tests.sites.federations import (
    NAMES,
    columns,
    federation,
    simulator,
    site_files,
    whole,
    with_the_secrets_of_a_simulation,
)
from tests.zoo import ZOO, fedavg, lossy, round_of, task

COHORTS = [[0, 1, 2, 3], [3, 0, 1], [2, 1, 0, 3], [0, 2], [1, 3, 2, 0]]
# One for each way that a round can be: the others differ in what is in the functions, and run with --slow.
FAST = ("downlink", "mime, clip, feedback", "ifca", "fedmgda", "trimmed mean", "remembers, draws", "signs")


@entries_of(FAST, slow=[name for name in ZOO if ZOO[name].sites])
def test_sites_end_where_the_simulator_ends(name, monkeypatch):
    composed, kind = round_of(name, 4), ZOO[name].data
    if name == "dp-sgd":
        with_the_secrets_of_a_simulation(monkeypatch)
    sim = simulator(composed, kind)
    expected = sim.init(jax.random.key(1))
    # whose weights go by what the server says, and grow
    rules = Rules(max_weight=10.0 if name == "addressed" else None)
    with federation(composed, kind, rules=rules) as (fed, sites, _):
        state = fed.init(jax.random.key(1))
        for cohort in [one for one in COHORTS if len(one) >= composed.aggregator.at_least]:
            state, got = fed.run(state, cohort)
            expected, seen = sim.run(expected, cohort)
        assert_close(whole(fed, sites, state), expected)
        numbers = {name: value for name, value in summary(got).items() if name not in LEFT}
        assert numbers == pytest.approx({**summary(seen), "missing": 0.0}, rel=1e-5)
        at_sites, at_hand = fed.evaluate(state), sim.evaluate(expected)
    # where examples meet in the loss: all of a site's do, and in the simulator as many as a client usually
    # has
    if kind == "survival":
        alone = [
            fc.evaluate(composed.algorithm.task, expected.params, fc.Clients.from_list([one]))
            for one in columns(kind)
        ]
        values = {name: np.array([found.pooled[name] for found in alone]) for name in at_hand.pooled}
        pooled = {name: np.average(each, weights=at_hand.sizes) for name, each in values.items()}
        at_hand = at_hand._replace(pooled=pooled, clients=values)
    assert at_sites.pooled == pytest.approx(at_hand.pooled, rel=1e-5)
    for metric, values in at_hand.clients.items():
        np.testing.assert_allclose(at_sites.clients[metric], values, rtol=1e-5)


@pytest.fixture(scope="module")
def stateful():
    return round_of("scaffold, clip, feedback", 4)


def fit(fed, rounds, run_dir, every=2):
    keeping = {"run_dir": run_dir, "checkpoint_every": every, "evaluate_every": every, "progress": False}
    return fc.fit(fed, rounds, cohorts=lambda r: COHORTS[r], key=jax.random.key(1), **keeping)


@pytest.mark.meets(
    "164.308(a)(7)", by="a run that is killed at any point goes on and ends with the same bits"
)
def test_killed_anywhere_and_started_again_it_ends_bit_for_bit(stateful, tmp_path):
    with federation(stateful, folder=tmp_path / "whole") as (fed, sites, _):
        expected = fit(fed, 5, tmp_path / "whole" / "run").state
        rows = whole(fed, sites, expected)

    class Killed(Exception):
        """Where the process ends."""

    for at in ("before the fourth round", "after a site has done its part"):
        folder = tmp_path / at

        def fault(send, site, request, n, at=at):
            header = header_of(request)
            if header.kind == "train" and header.round == 3 and (at.startswith("before") or site == NAMES[2]):
                raise Killed
            return send(site, request)

        with pytest.raises(Killed), federation(stateful, folder=folder, fault=fault) as (fed, _, _):
            fit(fed, 5, folder / "run")
        # coordinator and sites anew, from what is on their disks
        with federation(stateful, folder=folder) as (
            fed,
            sites,
            _,
        ):
            state = fit(fed, 5, folder / "run").state
            assert_equal(state, expected)
            assert_equal(whole(fed, sites, state), rows)


def test_who_a_rule_leaves_out_is_in_the_audit_log_by_name_and_the_bits_in_the_metrics(tmp_path):
    """One site of four reports numbers unlike the others'."""

    def lie(name, said):
        wild = name == NAMES[1] and said.header.kind == "update"
        return ({}, {at: x * np.float32(-20) for at, x in said.tensors.items()}) if wild else None

    algorithm = fc.algorithms.unweighted(fedavg().algorithm)
    composed = fc.compose(algorithm, aggregator=fc.aggregators.multi_krum(1), downlink=fc.uplink.half())
    with federation(composed, folder=tmp_path, lie=lie, rules=Rules(max_norm=1e9)) as (fed, _, _):
        _, seen = fed.run(fed.init(jax.random.key(1)), [0, 1, 2, 3])
    out = [one for one in show(tmp_path / "coordinator" / "audit") if one.what == "left out"]
    assert [(one.who, one.about["rule"]) for one in out] == [(NAMES[1], "multi_krum")]
    assert float(seen["left_out"]) == 1
    assert (
        float(seen["bits_down"]) == 4 * 16 * fc.tree.size(task().init(jax.random.key(0)))
        and "bits_up" not in seen
    )


def test_what_a_run_goes_on_from_is_in_the_audit_log(stateful, tmp_path):
    with federation(stateful, folder=tmp_path) as (fed, _, _):
        fit(fed, 4, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "00000004" / "checkpoint.json").write_text("{")
    with federation(stateful, folder=tmp_path) as (fed, _, _):
        fit(fed, 5, tmp_path / "run")
    entries = list(show(tmp_path / "coordinator" / "audit"))
    found = [
        (one.what, one.round, one.about) for one in entries if one.what in ("checkpoint damaged", "resumed")
    ]
    assert [(what, round) for what, round, _ in found] == [("checkpoint damaged", 4), ("resumed", 2)]
    assert (
        found[0][2]["set_aside"] == "damaged-00000004"
        and "checkpoint.json" in found[0][2]["reason"]
        and found[1][2] == {}
    )


def test_a_run_goes_on_with_another_configuration_where_it_is_told_to(tmp_path):
    faster, slower = (fc.compose(fc.algorithms.scaffold(task(), lr, 4), uplink=lossy()) for lr in (0.1, 0.05))
    with federation(faster, folder=tmp_path) as (fed, _, _):
        fit(fed, 2, tmp_path / "run")
    cohorts, keeping = (
        COHORTS.__getitem__,
        {"run_dir": tmp_path / "run", "checkpoint_every": 2, "evaluate_every": 2, "progress": False},
    )
    with federation(slower, folder=tmp_path) as (fed, sites, _):
        with pytest.raises(ValueError, match="another configuration"):
            fit(fed, 4, tmp_path / "run")
        # which have another task pinned, and are not overridden
        with pytest.raises(Paused, match="0 of 4 sites reported"):
            fc.fit(fed, 4, cohorts=cohorts, key=jax.random.key(1), override=True, **keeping)
        for pinned in tmp_path.rglob("pinned"):
            pinned.unlink()
        state = fc.fit(fed, 4, cohorts=cohorts, key=jax.random.key(1), override=True, **keeping).state
        rows = whole(fed, sites, state)
    resumed = [one for one in show(tmp_path / "coordinator" / "audit") if one.what == "resumed"]
    assert len(resumed) == 2 and all(
        one.round == 2 and any("0.1 -> 0.05" in str(line) for line in one.about.values()) for one in resumed
    )
    at_hand = simulator(faster)
    expected = at_hand.init(jax.random.key(1))
    for r in range(4):
        expected, _ = (at_hand if r < 2 else simulator(slower)).run(expected, COHORTS[r])
    assert_close(rows, expected)


def test_a_coordinator_that_falls_back_takes_its_sites_back(stateful, tmp_path):
    with federation(stateful, folder=tmp_path) as (fed, sites, _):
        state = fed.init(jax.random.key(1))
        for cohort in COHORTS[:2]:
            state, _ = fed.run(state, cohort)
        after, _ = fed.run(state, COHORTS[2])
        fed.run(after, COHORTS[3])
        again, _ = fed.run(state, COHORTS[2])  # as from a checkpoint of round 2
        assert_equal(again, after)
        assert_equal(whole(fed, sites, again), whole(fed, sites, after))


@pytest.mark.parametrize(
    ("stage", "dtypes"), [(fc.uplink.quantize(bits=8), {"int8", "float32"}), (fc.uplink.half(), {"bfloat16"})]
)
def test_what_the_uplink_makes_is_what_travels(stage, dtypes):
    plain, small = (
        fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.1)), uplink=one) for one in (None, stage)
    )
    sent = []
    for composed in (plain, small):
        with federation(composed) as (fed, _, transport):
            fed.run(fed.init(jax.random.key(1)), [0, 1])
            raw = next(raw for raw in transport.received if header_of(raw).kind == "update")
            sent.append(decode(raw, fed._roster, recipient="coordinator").tensors)
    assert {x.dtype.name for x in sent[1].values()} == dtypes
    assert sum(x.nbytes for x in sent[1].values() if x.ndim) * 2 <= sum(x.nbytes for x in sent[0].values())


def test_the_same_request_gets_the_same_bytes_and_an_old_one_is_refused(stateful):
    with federation(stateful) as (fed, sites, transport):
        state, _ = fed.run(fed.init(jax.random.key(1)), [0, 1, 2, 3])
        old = next(raw for raw in transport.sent if header_of(raw).kind == "train")
        reply = sites[1].handle(old)
        assert reply == sites[1].handle(old) and header_of(reply).kind == "update"
        fed.run(state, [0, 1, 2, 3])
        assert header_of(sites[1].handle(old)).fields["code"] == "replayed"


def test_the_audit_says_who_was_asked(tmp_path, capsys):
    # the second exchange asks those who reported in the first
    mime = fc.compose(fc.algorithms.mime(task(), optax.sgd(0.1)))

    def fault(send, site, request, n):
        header = header_of(request)
        return (
            failed()
            if site == NAMES[3] and (header.kind, header.round, header.exchange) == ("train", 0, 0)
            else send(site, request)
        )

    with federation(mime, folder=tmp_path, fault=fault, rules=Rules(attempts=1)) as (fed, _, _):
        state = fed.init(jax.random.key(1))
        for cohort in ([0, 1, 3], [2, 0]):
            state, _ = fed.run(state, cohort)
        fed.evaluate(state)
    log = tmp_path / "coordinator" / "audit"
    asked = [
        (one.about["kind"], one.round, one.about["exchange"], one.about["names"])
        for one in show(log, what="asked")
    ]
    assert asked == [
        ("describe", 0, 0, "charite mayo oslo kyoto"),
        ("train", 0, 0, "charite mayo kyoto"),
        ("train", 0, 1, "charite mayo"),
        ("train", 1, 0, "oslo charite"),
        ("train", 1, 1, "oslo charite"),
        ("evaluate", 2, 0, "charite mayo oslo kyoto"),
    ]
    assert [(one.what, one.round) for one in show(log, site="oslo", round=1)] == [
        ("asked", 1),
        ("update", 1),
        ("asked", 1),
        ("update", 1),
    ]
    assert main(["audit", "show", str(log), "--site", "kyoto", "--what", "asked"]) == 0
    assert capsys.readouterr().out.count("\n") == 4  # with the title


def test_who_was_asked_is_told_of_any_number_of_sites():
    names = [f"a-hospital-of-a-long-name-{i:03d}" for i in range(200)]
    about = in_lines("names", names)
    assert (
        of_lines("names", about | {"kind": "train"}) == names and of_lines("names", {"kind": "train"}) == []
    )
    assert len(about) > 1 and all(is_scalar(line) and len(line) <= 1000 for line in about.values())


def test_sites_refuse_what_is_not_theirs_to_answer(stateful, tmp_path):
    with federation(stateful, folder=tmp_path) as (fed, sites, transport):
        fed.init(jax.random.key(1))
        state = fed.init(jax.random.key(1))
        raw = fed._requests.write(
            "train",
            0,
            to=NAMES,
            context=RunContext(state, np.zeros(4, np.int32)),
            body={"message": 1},
            draws=True,
        )
        cases = {
            "not-an-envelope": b"hello, site",
            "pickle-payload": b"\x80\x04N.",
            "bad-signature": transport.sent[0].replace(b'"exchange":0', b'"exchange":1'),
            "wrong-structure": raw,
            "wrong-kind": fed._requests.write("shell", 0, to=NAMES),
        }
        for code, request in cases.items():
            answer = header_of(sites[0].handle(request))
            assert (answer.kind, answer.fields["code"]) == ("refusal", code)


@pytest.mark.meets(
    "164.312(a)(1)",
    by="a policy at the site, which denies what it does not name and which no coordinator can change",
)
def test_a_policy_is_asked_before_work_and_before_anything_leaves(stateful, tmp_path):
    files = []
    for one in site_files(folder=tmp_path):
        path = tmp_path / f"{one.name}.toml"
        path.write_text(f'site = "{one.name}"\n[tasks]\nmode = "first-use"\n')
        files.append(dataclasses.replace(one, policy=path))
    with federation(stateful, files=files, folder=tmp_path, rules=Rules(quorum=1)) as (fed, _, _):
        changes = {1: "paused = true", 2: "[minimum]\nexamples = 2", 3: "[leaving]\nmax_norm = 1e-9"}
        for i, change in changes.items():  # by their staff, while the run goes on
            files[i].policy.write_text(f'site = "{NAMES[i]}"\n{change}\n[tasks]\nmode = "first-use"\n')
        state, seen = fed.run(fed.init(jax.random.key(1)), [0, 1, 2, 3])
        assert state.clients.version.tolist() == [1, 0, 0, 0]
        # the loss is not among the fields that may leave
        assert set(seen) == {
            "refused",
            "missing",
            "clients",
            "examples",
            "bits_up",
        }
        said = {
            entry.who: entry.about.get("reason")
            for entry in show(tmp_path / "coordinator" / "audit")
            if entry.what == "declined"
        }
    assert "(paused)" in said[NAMES[1]]
    # which depend on the data
    for name, setting in (
        (NAMES[2], "minimum.examples"),
        (NAMES[3], "leaving.max_norm"),
    ):
        assert (
            said[name]
            == f"{name} declined, for a reason that is for its staff: its errors.log has it, and its audit log (--what refused)"
        )
        assert setting in next(show(tmp_path / name / "audit", what="refused")).about["reason"]
        assert setting in (tmp_path / name / "errors.log").read_text()
    ledger = [entry.about["kind"] for entry in show(tmp_path / NAMES[0] / "audit") if entry.what == "left"]
    assert ledger == ["description", "update"]
    assert "update" not in [entry.about.get("kind") for entry in show(tmp_path / NAMES[3] / "audit")]


def test_a_site_tells_the_server_of_itself_only_what_its_policy_names(tmp_path):
    """FedNova's numbers of steps: with them the model is the simulator's; a site that does not name them is
    not in the round."""
    composed, files = fc.compose(fc.algorithms.fednova(task(), 0.1)), []
    for one in site_files(folder=tmp_path):
        path = tmp_path / f"{one.name}.toml"
        fields = ["weight", "examples", "data", *(["stats.steps"] if one.name != NAMES[1] else [])]
        cell = 2 if one.name == NAMES[2] else 0  # which has one example
        path.write_text(
            f'site = "{one.name}"\n[minimum]\ncell = {cell}\n[leaving]\nfields = {fields}\nmax_norm = 3.0\n[tasks]\nmode = "first-use"\n'
        )
        files.append(dataclasses.replace(one, policy=path))
    with federation(composed, files=files, folder=tmp_path, rules=Rules(quorum=1)) as (fed, _, _):
        state, seen = fed.run(fed.init(jax.random.key(1)), [0, 1, 2, 3])
    refused = {
        entry.who: entry.about.get("reason")
        for entry in show(tmp_path / "coordinator" / "audit")
        if entry.what == "declined"
    }
    assert float(seen["clients"]) == 2 and set(refused) == {NAMES[1], NAMES[2]}
    assert f"{NAMES[1]} does not let 'stats.steps' leave (leaving.fields) [field]" in refused[NAMES[1]]
    assert "minimum.cell" in next(show(tmp_path / NAMES[2] / "audit", what="refused")).about["reason"]
    sim = simulator(composed)
    expected, _ = sim.run(sim.init(jax.random.key(1)), [0, 3])
    # steps of 12 are no part of the norm that may leave
    assert_close(state._replace(clients=expected.clients), expected)


def test_a_change_of_data_must_be_declared(stateful, tmp_path):
    with federation(stateful, folder=tmp_path) as (fed, _, _):
        state, _ = fed.run(fed.init(jax.random.key(1)), [0, 1, 2, 3])
        was = fed.clients.data[NAMES[0]]
    more = dataclasses.replace(
        site_files(folder=tmp_path)[0], data=jax.tree.map(lambda x: x[:-1], columns()[0])
    )
    for declared, count in ((None, 3), (was, 4)):
        files = [dataclasses.replace(more, data_was=declared), *site_files(folder=tmp_path)[1:]]
        with federation(stateful, files=files, folder=tmp_path) as (fed, _, _):
            fed.init(jax.random.key(1))
            assert float(fed.run(state, [0, 1, 2, 3])[1]["clients"]) == count
