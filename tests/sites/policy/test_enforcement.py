"""What a site insists on holds whatever is asked of it: its caps, its clock, its share of bad records, its
leaving. What becomes of each fault, and the test that shows it, is in test_fault_matrix.py.
"""

import dataclasses
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import jax
import numpy as np
import optax
import pytest
from msgspec import structs

import fedjax_core as fc
from fedjax_core.sites.audit import show
from fedjax_core.sites.coordinator.reports import NothingLearned
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.policy import Caps
from fedjax_core.sites.policy.budget import Budget, OverCap
from fedjax_core.sites.wire.envelope import decode, encode, header_of
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.uplink.base import stage
from tests.sites.federations import COORDINATOR, NAMES, columns, federation, site_files
from tests.zoo import round_of, task

ALL = [0, 1, 2, 3]
COMPOSED = round_of("fedavg")


def with_policy(folder, text, who=1):
    """Site files of which one has this policy, and the path of that."""
    files = site_files(folder=folder)
    path = folder / "policy.toml"
    path.write_text(f'site = "{NAMES[who]}"\n{text}\n[tasks]\nmode = "first-use"\n')
    files[who] = dataclasses.replace(files[who], policy=path)
    return files, path


def declined(folder):
    return [entry.about for entry in show(folder / "coordinator" / "audit", what="declined")]


def test_a_site_that_withdrew_says_so_and_contributes_no_more(tmp_path):
    files, path = with_policy(tmp_path, "")
    with federation(COMPOSED, files=files, folder=tmp_path) as (fed, sites, _):
        state, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert float(seen["clients"]) == 4
        path.write_text("withdrawn = true\n" + path.read_text())
        for _ in range(2):
            state, seen = fed.run(state, ALL)
            assert float(seen["clients"]) == 3
        said = declined(tmp_path)[-1]
        assert (said["code"], said["reason"]) == (
            "withdrawn",
            f"{NAMES[1]} has withdrawn from the federation (withdrawn)",
        )
        withdrew = list(show(tmp_path / NAMES[1] / "audit", what="withdrew"))
        assert [(one.run, one.round, one.about["key"]) for one in withdrew] == [
            ("run", 1, sites[1].context.key.public.fingerprint)
        ]
        assert [
            one.round
            for one in show(tmp_path / NAMES[1] / "audit", what="left")
            if one.about["kind"] == "update"
        ] == [0]


@pytest.mark.parametrize(
    ("caps", "said"),
    [
        ("seconds_per_round = 1e-9", "training took longer than the 1e-09 s that this site gives a round"),
        ("memory_gb = 0.001", "the work needs more than this site's 0.001 GB of memory"),
    ],
)
@pytest.mark.meets("164.502(b)", by="caps on how often and how much leaves")
def test_caps_end_the_work_and_nothing_leaves(tmp_path, caps, said):
    files, _ = with_policy(tmp_path, f"[caps]\n{caps}")
    with federation(COMPOSED, files=files, folder=tmp_path) as (fed, _, _):
        _, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert float(seen["clients"]) == 3
    assert [(one["code"], said in one["reason"]) for one in declined(tmp_path)] == [("over-cap", True)]
    assert "update" not in [one.about["kind"] for one in show(tmp_path / NAMES[1] / "audit", what="left")]


def test_caps_of_a_day_last_over_restarts(tmp_path):
    budget = Budget(tmp_path)
    with budget.round(Caps(seconds_per_day=60)) as watch:
        watch(3)
    spent = budget.seconds_today
    assert budget.steps == 3 and 0 < spent < 60 and Budget(tmp_path).seconds_today == spent
    said = r"that this site gives a day are used up, so nothing is sent \(caps.seconds_per_day\)"
    with pytest.raises(OverCap, match=said), Budget(tmp_path).round(Caps(seconds_per_day=spent)) as watch:
        watch(1)
    (tmp_path / "spent.json").write_text('{"day":"2001-01-01","seconds":1e9}')
    assert Budget(tmp_path).seconds_today == 0


def test_the_cap_that_was_exceeded_is_named_where_two_are_the_same_number():
    now, limit = [0.0], 5.0
    budget = Budget(None, clock=lambda: now[0])
    with budget.round(Caps()):
        now[0] += 4.0
    said = r"gives a day are used up, so nothing is sent \(caps.seconds_per_day\)"
    with (
        pytest.raises(OverCap, match=said),
        budget.round(Caps(seconds_per_round=limit, seconds_per_day=limit)) as watch,
    ):
        now[0] += 2.0
        watch(1)


def test_a_process_is_confined():
    script = (
        "import os; from fedjax_core.sites.policy.budget import confine; from fedjax_core.sites.policy import Caps\n"
        "confine(Caps(cpus=1, gpu_share=0.25)); print(len(os.sched_getaffinity(0)), os.environ['XLA_PYTHON_CLIENT_MEM_FRACTION'])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert out.stdout.split() == ["1", "0.25"]


def bad_records():
    """The first site's examples, 23, of which two cannot be used."""
    found = {name: np.array(x) for name, x in columns()[0].items()}
    found["x"][2, 0], found["y"][7] = np.nan, 99
    return found


def test_bad_records_are_skipped_and_counted(tmp_path):
    files, _ = with_policy(tmp_path, "max_bad_share = 0.1", who=0)
    files[0] = dataclasses.replace(files[0], data=bad_records())
    with federation(COMPOSED, files=files, folder=tmp_path) as (fed, sites, transport):
        _, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        used = sites[0].context.data.clients
        assert float(seen["clients"]) == 4 and used.examples == 21 and np.isfinite(used.columns["x"]).all()
        said = [header_of(raw) for raw in transport.received]
    assert [(one.sender, one.fields["skipped"]) for one in said if "skipped" in one.fields] == [(NAMES[0], 2)]
    assert next(show(tmp_path / NAMES[0] / "audit", what="opened")).about["skipped"] == 2
    assert "2 bad records were left out, of the rows 2, 7" in (tmp_path / NAMES[0] / "errors.log").read_text()


def test_with_more_bad_records_a_site_takes_no_part(tmp_path):
    files, _ = with_policy(tmp_path, "max_bad_share = 0.05", who=0)
    files[0] = dataclasses.replace(files[0], data=bad_records())
    with federation(COMPOSED, files=files, folder=tmp_path) as (fed, _, _):
        _, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert float(seen["clients"]) == 3 and "declined" in fed.lacked(1)[NAMES[0]]
    reason = (
        f"{NAMES[0]} has more bad records than the share of 0.05 that it skips (max_bad_share) [bad-records]"
    )
    assert next(show(tmp_path / NAMES[0] / "audit", what="refused")).about["reason"] == reason
    assert declined(tmp_path)[0]["code"] == "declined" and "bad" not in declined(tmp_path)[0]["reason"]
    files[0] = dataclasses.replace(files[0], policy=None)  # which skips none
    with pytest.raises(ValueError, match="NaN"), federation(COMPOSED, files=files):
        pass


@pytest.mark.parametrize("hours", [1, -48])
def test_a_wrong_clock_is_refused_by_how_much(tmp_path, monkeypatch, hours):
    with federation(COMPOSED, folder=tmp_path, rules=Rules(attempts=1)) as (fed, sites, transport):
        state = fed.init(jax.random.key(1))
        real = sites[2].context.header
        monkeypatch.setattr(
            sites[2].context,
            "header",
            lambda *a: structs.replace(h := real(*a), created_unix_ms=h.created_unix_ms + hours * 3_600_000),
        )
        _, seen = fed.run(state, ALL)
        assert float(seen["clients"]) == 3
        refused = [one.about for one in show(tmp_path / "coordinator" / "audit", what="refused")]
        way = "ahead of" if hours > 0 else "behind"
        assert [one["code"] for one in refused] == ["clock-skew"]
        assert (
            way in refused[0]["reason"]
            and "have both machines take their time from NTP" in refused[0]["reason"]
        )
        asked, tensors = decode(
            transport.sent[-1], Roster({"coordinator": COORDINATOR.public}), recipient="sites"
        )
        off = structs.replace(
            asked, created_unix_ms=asked.created_unix_ms + hours * 3_600_000, sequence=asked.sequence + 1
        )
        answer = header_of(sites[0].handle(encode(off, tensors, COORDINATOR)))
        assert (
            answer.fields["code"] == "clock-skew"
            and "the clock of 'coordinator' is" in answer.fields["reason"]
        )


def test_reports_that_add_up_to_nothing_stop_the_run(tmp_path):
    still = fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.0)))
    with federation(still, folder=tmp_path) as (fed, _, _):
        state = fed.init(jax.random.key(1))
        with pytest.raises(
            NothingLearned, match=r"round 0, exchange 0: 4 reports add up to exactly nothing.*allow_zero=True"
        ):
            fed.run(state, ALL)
        assert (
            next(show(tmp_path / "coordinator" / "audit", what="warned")).about["code"] == "nothing-learned"
        )
        fed.rules = Rules(allow_zero=True)
        assert int(fed.run(state, ALL)[0].round) == 1


def test_what_the_uplink_leaves_is_told_and_little_is_warned_of(tmp_path, caplog):
    def first_only(state, own, update, key):
        return jax.tree.map(
            lambda x: x.at[...].set(0).reshape(-1).at[0].set(x.reshape(-1)[0]).reshape(x.shape), update
        ), own

    wiped = fc.compose(
        fc.algorithms.fedavg(task(), optax.sgd(0.1)),
        uplink=fc.uplink.chain(stage("filter", encode=first_only, measurable=True)),
    )
    with federation(wiped, folder=tmp_path) as (fed, _, _):
        _, seen = fed.run(fed.init(jax.random.key(1)), ALL)
    shapes = [x.size for x in jax.tree.leaves(jax.eval_shape(task().init, jax.random.key(0)))]
    assert float(seen["uplink_kept"].total / seen["uplink_kept"].weight) == pytest.approx(
        len(shapes) / sum(shapes), rel=0.3
    )
    assert 0 < float(seen["uplink_norm"].total / seen["uplink_norm"].weight) < 1
    left = [
        one.about for one in show(tmp_path / NAMES[0] / "audit", what="left") if one.about["kind"] == "update"
    ]
    assert left[0]["uplink_kept"] <= 1 and left[0]["uplink_norm"] < 1
    hidden = wiped._replace(uplink=fc.uplink.chain(stage("masks", encode=first_only)))
    with federation(hidden, folder=tmp_path / "hidden") as (fed, _, _):
        _, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert not {"uplink_kept", "uplink_norm"} & {*seen}
    noisy = fc.uplink.chain(
        wiped.uplink,
        fc.privacy.local(clip=1.0, noise=2.0, rounds=1, open_counts=True, open_metrics=True).uplink,
    )
    with federation(fc.compose(wiped.algorithm, uplink=noisy), folder=tmp_path / "noise") as (fed, sites, _):
        _, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert not {"uplink_kept", "uplink_norm"} & {
            *seen,
            *sites[0].context.enforcement.policy.leaving.fields,
        }
    fed_rules = Rules(warn_below=0.9)
    with federation(wiped, folder=tmp_path / "again", rules=fed_rules) as (fed, _, _):
        fed.run(fed.init(jax.random.key(1)), ALL)
    assert "the uplink leaves little of the updates" in caplog.text
    assert (
        next(show(tmp_path / "again" / "coordinator" / "audit", what="warned")).about["code"] == "little-left"
    )


def test_a_round_has_one_deadline():
    mime = fc.compose(fc.algorithms.mime(task(), optax.sgd(0.1)))

    silent = False

    def fault(send, site, request, n):
        held = silent and header_of(request).kind == "train" and site == NAMES[header_of(request).exchange]
        return Future() if held else send(site, request)

    with federation(mime, fault=fault, rules=Rules(quorum=2)) as (fed, _, _):
        state = fed.init(jax.random.key(1))
        fed.run(state, ALL)  # compiles
        silent = True
        fed.rules = Rules(quorum=2, deadline_seconds=2.0)
        began = time.monotonic()
        _, seen = fed.run(state, ALL)  # each exchange has half of it, and one silent site
        assert time.monotonic() - began < 3.5 and float(seen["clients"]) == 2
        assert list(fed.lacked(1)) == list(NAMES[:2])


def test_progress_is_no_idleness():
    def slow(send, site, request, n):
        if header_of(request).kind != "train" or site != NAMES[0]:
            return send(site, request)
        found: Future = Future()
        send(site, request).add_done_callback(
            lambda f: threading.Timer(1.5, lambda: found.set_result(f.result())).start()
        )
        return found

    for goes_on, count in ((True, 4), (False, 3)):
        with federation(COMPOSED, fault=slow, rules=Rules(deadline_seconds=300.0)) as (fed, _, transport):
            state, _ = fed.run(fed.init(jax.random.key(1)), ALL)
            began = time.monotonic()
            transport.progress = lambda site, go=goes_on, began=began: (
                int((time.monotonic() - began) * 1000) if go else 0
            )
            fed.rules = Rules(deadline_seconds=300.0, idle_seconds=0.4)
            assert float(fed.run(state, ALL)[1]["clients"]) == count
