"""The epsilon of what left a site is that of its Gaussian mechanisms together, and is never counted too
low."""

import contextlib
import dataclasses
import json
import math
import time

import jax
import numpy as np
import pytest

from fedjax_core import compose, privacy
from fedjax_core.sites.audit import Log, show
from fedjax_core.sites.audit.retention import prune
from fedjax_core.sites.doctor import base, study
from fedjax_core.sites.policy.privacy_ledger import Ledger, epsilon
from fedjax_core.sites.wire.envelope import COORDINATOR, SITES, Header
from fedjax_core.sites.wire.identity import SiteKey
from tests.sites.federations import NAMES, federation, site_files
from tests.zoo import round_of

COMPOSED = round_of("fedavg")
ALL, WHO = [0, 1, 2, 3], 1
NOISE, DELTA = 4.0, 1e-5
NOISY = compose(
    COMPOSED.algorithm,
    uplink=privacy.local(clip=1.0, noise=NOISE, rounds=9, delta=DELTA, open_counts=True).uplink,
)


@pytest.mark.parametrize(
    ("mu", "delta", "expected"),
    [
        # noise of 10 times the sensitivity, 100 times over: by privacy loss distributions
        (
            1.0,
            1e-5,
            4.37718,
        ),
        (2.0, 1e-5, 9.99726),
        # The noise that an epsilon takes, by the analytic Gaussian mechanism.
        (1 / 7.03183, 1e-5, 0.5),
        (1 / 3.73063, 1e-5, 1.0),
        (1 / 1.99381, 1e-5, 2.0),
        (1 / 0.60023, 1e-5, 8.0),
        (1 / 4.22468, 1e-6, 1.0),
        (1 / 0.54109, 1e-6, 10.0),
    ],
)
def test_it_is_what_others_compute(mu, delta, expected):
    """dp-accounting 0.6 gives these numbers."""
    assert epsilon(mu**2, delta) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mu", [0.3, 1.0, 4.0])
def test_it_is_the_definition_by_quadrature_and_below_the_bound_of_zcdp(mu):
    """delta(epsilon) is the integral of what N(mu, 1) has more than exp(epsilon) N(0, 1)."""
    x = np.linspace(-20, 20 + mu, 400_001)
    p, q = (np.exp(-((x - at) ** 2) / 2) / math.sqrt(2 * math.pi) for at in (mu, 0.0))
    for delta in (1e-3, 1e-6):
        found = epsilon(mu**2, delta)
        assert np.trapezoid(np.maximum(p - math.exp(found) * q, 0), x) == pytest.approx(delta, rel=1e-3)
        rho = mu**2 / 2
        assert found < rho + 2 * math.sqrt(rho * math.log(1 / delta))
    assert epsilon(0.0, 1e-6) == 0 and 90 < epsilon(100.0, 1e-5) < epsilon(1e6, 1e-5) < math.inf


def asked(round, **fields):
    return Header(
        kind="train", run="run", round=round, exchange=0, sender=COORDINATOR, recipient=SITES, sequence=round, created_unix_ms=0, config="",
        fields=fields,
    )  # fmt: skip


def test_what_may_be_asked_again_is_known_however_long_ago_it_was(tmp_path):
    """As in a run whose oldest checkpoint is of round 10: done again from there, it tells nothing new."""
    ledger = Ledger(tmp_path)
    for round in range(200):
        told = ledger.add(f"run/{round}/0", NOISE, f"{round:x}", asked(round, oldest=10))
    again = Ledger(tmp_path)
    assert all(again.after(f"run/{round}/0", NOISE, f"{round:x}") == told for round in range(10, 200))


def test_each_update_counts_once_over_restarts(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.after("run/0/0", NOISE) == (2 / NOISE) ** 2 and ledger.privacy_loss == 0
    for round in range(100):
        ledger.add(f"run/{round}/0", NOISE, f"{round:x}", asked(round))
    assert ledger.privacy_loss == pytest.approx(100 * (2 / NOISE) ** 2)
    again = Ledger(tmp_path)
    assert (
        again.privacy_loss
        == ledger.privacy_loss
        == again.after("run/99/0", NOISE)
        == again.after("run/99/0", NOISE, "63")
    )
    before = ledger.privacy_loss
    assert again.add("run/99/0", NOISE, "63", asked(99)) == before  # the same bits tell nothing new
    assert again.add("run/99/0", NOISE, "64", asked(99)) == before + (2 / NOISE) ** 2  # others do
    assert ledger.privacy_loss == again.privacy_loss  # which an account of several sites' files shares
    assert (
        Ledger(tmp_path).after("run/0/0", NOISE) > again.privacy_loss
    )  # long forgotten: counted again rather than not


def test_a_ledger_that_is_gone_is_made_of_the_audit_and_a_damaged_one_is_refused(tmp_path):
    with Log(tmp_path / "audit", SiteKey.make("charite")) as log:
        for told in (0.25, 0.5, None):
            log.record("charite", "left", about={"kind": "update"} | ({} if told is None else {"told": told}))
    assert Ledger(tmp_path).privacy_loss == 0.5 and Ledger(None).privacy_loss == 0
    for text in (
        "",
        "{}",
        '{"told": -1, "last": {}}',
        '{"told": NaN, "last": {}}',
        '{"told": 1, "last": []}',
    ):
        (tmp_path / "told.json").write_text(text)
        with pytest.raises(ValueError, match=r"told\.json.* is damaged: restore it from its backup"):
            Ledger(tmp_path)


def test_what_was_told_stays_told_whoever_puts_an_older_file_there_or_prunes_the_log(tmp_path):
    key, path = SiteKey.make("charite"), tmp_path / "told.json"
    with Log(tmp_path / "audit", key) as log:
        ledger = Ledger(tmp_path)
        files = []
        for i in range(3):
            log.record("charite", "left", about={"told": ledger.add(f"run/{i}/0", NOISE, "ab", asked(i))})
            files.append(path.read_bytes())
        told = ledger.privacy_loss
        path.write_bytes(files[0])
        assert Ledger(tmp_path).privacy_loss == told
        path.unlink()
        assert prune(log, before=time.time()) is not None and Ledger(tmp_path).privacy_loss == told
        log.record("charite", "opened")
        assert (
            prune(log, before=time.time()) is not None and Ledger(tmp_path).privacy_loss == told
        )  # the entry that said so is gone, too


def sites(folder, limit, more=""):
    """Site files of which one has a policy with this epsilon."""
    files = site_files(folder=folder)
    path = folder / "policy.toml"
    fields = f'clip = 1.0\nnoise = 3.5\nby = "study"\ndelta = {DELTA}\nepsilon = {limit}\nfields = ["weight", "examples", "data"]'
    path.write_text(f'site = "{NAMES[WHO]}"\n[tasks]\nmode = "first-use"\n[leaving]\n{fields}\n{more}')
    files[WHO] = dataclasses.replace(files[WHO], policy=path)
    with contextlib.suppress(FileExistsError):
        Ledger.begin(folder / NAMES[WHO])
    return files


@pytest.mark.parametrize("limit", [None, 9.0])
def test_a_site_begins_anew_after_a_crash_that_tore_its_log(tmp_path, limit):
    files = site_files(folder=tmp_path) if limit is None else sites(tmp_path, limit)
    composed = COMPOSED if limit is None else NOISY
    for left in (1, 2):
        with federation(composed, files=files, folder=tmp_path, run_name=f"run-{left}") as (fed, _, _):
            assert float(fed.run(fed.init(jax.random.key(1)), ALL)[1]["clients"]) == 4
        assert limit is None or updates(tmp_path)[-1]["told"] == left * (2 / NOISE) ** 2
        (tmp_path / NAMES[WHO] / "told.json").unlink(missing_ok=True)
        with open(tmp_path / NAMES[WHO] / "audit" / "audit-000001.jsonl", "ab") as log:
            log.write(b'{"entry":{"about"')


def updates(folder):
    return [
        one.about for one in show(folder / NAMES[WHO] / "audit", what="left") if one.about["kind"] == "update"
    ]


def test_a_site_tells_no_more_than_its_policy_lets_it(tmp_path):
    """Enough for three updates: of two rounds, and of one again with other bits, after the coordinator fell
    back to another model."""
    wanted = [epsilon(n * (2 / NOISE) ** 2, DELTA) for n in (1, 2, 3)]
    with federation(NOISY, files=sites(tmp_path, wanted[2] + 0.01), folder=tmp_path) as (fed, _, _):
        first = fed.init(jax.random.key(1))
        second, _ = fed.run(first, ALL)
        fed.run(second, ALL)
    assert [one["epsilon"] for one in updates(tmp_path)] == pytest.approx(wanted[:2])
    account = NOISY.uplink.promises.account
    said = [
        (one.about["epsilon"], one.about["delta"])
        for one in show(tmp_path / "coordinator" / "audit", what="round")
    ]
    # the coordinator's log has what the study's own account says
    assert said == [(account.told(rounds), DELTA) for rounds in (1, 2)]
    about = next(one for one in sites(tmp_path, wanted[2] + 0.01) if one.name == NAMES[WHO])
    assert study.policy(about, base.Settings()).endswith(
        f"open now, an epsilon of {wanted[1]:.3g} told so far"
    )
    assert {one["delta"] for one in updates(tmp_path)} == {DELTA} and {
        one["fields"] for one in updates(tmp_path)
    } == {"data examples weight"}
    any_model = '[evaluation]\nmodels = "any"\n'
    with federation(NOISY, files=sites(tmp_path, wanted[2] + 0.01, any_model), folder=tmp_path) as (
        fed,
        _,
        _,
    ):
        fed.init(jax.random.key(1))
        third, seen = fed.run(second, ALL)  # as from a checkpoint: the same bits, which cost nothing
        assert float(seen["clients"]) == 4 and updates(tmp_path)[-1]["epsilon"] == pytest.approx(wanted[1])
        other = second._replace(server=jax.tree.map(lambda x: x + 1, second.server))
        assert float(fed.run(other, ALL)[1]["clients"]) == 4 and updates(tmp_path)[-1][
            "epsilon"
        ] == pytest.approx(wanted[2])
        for _ in range(2):
            third, seen = fed.run(third, ALL)
            assert float(seen["clients"]) == 3
        # And not once more with those bits, which are no longer the last of that round: known only after work, so it is
        # counted.
        assert float(fed.run(second, ALL)[1]["clients"]) == 3
    reasons = [one.about["reason"] for one in show(tmp_path / "coordinator" / "audit", what="declined")]
    limit = f"an epsilon of {wanted[2] + 0.01:g} at delta 1e-05, which is spent (leaving.epsilon) [epsilon]"
    assert (
        reasons[:2] == [f"{NAMES[WHO]} lets its updates tell no more than {limit}"] * 2
        and "epsilon" not in reasons[2]
    )
    refused = [one.about for one in show(tmp_path / NAMES[WHO] / "audit", what="refused")]
    assert [limit in one["reason"] for one in refused] == [True] * 3
    assert (
        len(updates(tmp_path)) == 4
        and json.loads((tmp_path / NAMES[WHO] / "told.json").read_text())["told"] == 4 * (2 / NOISE) ** 2
    )


def test_a_study_that_says_its_own_epsilon_is_one_of_that_hash(tmp_path):
    with federation(COMPOSED, epsilon=3.0, folder=tmp_path) as (fed, sites, _):
        fed.run(fed.init(jax.random.key(1)), ALL)
        assert fed.study.hash == sites[0].context.study.hash
    assert [one["epsilon"] for one in updates(tmp_path)] == [3.0]
