"""What a site itself clips and adds noise to is bounded, noisy and counted, whatever the study does, and the
same when asked again."""

import contextlib
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import fedjax_core as fc
from fedjax_core import privacy
from fedjax_core.sites.audit import show
from fedjax_core.sites.policy.noise import protected
from fedjax_core.sites.policy.privacy_ledger import Ledger, epsilon
from fedjax_core.sites.wire.tensors import NotFinite, measure
from tests.sites.federations import NAMES, federation, site_files
from tests.sites.policy.test_privacy_ledger import asked
from tests.zoo import round_of, task

COMPOSED = round_of("fedavg")
ALL, WHO = [0, 1, 2, 3], 1
CLIP, NOISE, DELTA = 0.5, 2.0, 1e-5


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
def test_the_norm_is_bounded_and_what_is_short_stays_as_it_is(dtype):
    rng = np.random.default_rng(0)
    for size in (0.0, 1.0, 1e4) if np.dtype(dtype) == np.float16 else (0.0, 1.0, 1e30):
        update = {name: np.asarray(size * rng.standard_normal(50), dtype) for name in "ab"}
        found = protected(update, clip=3.0)
        assert measure(found) <= 3.0 and all(x.dtype == dtype for x in found.values())
        assert size == 0 or measure(found) > 2.9
    short = {"a": np.asarray([1.0, -2.0], dtype)}
    assert protected(short, clip=3.0)["a"].tobytes() == short["a"].tobytes()


def test_noise_is_normal_of_the_size_that_is_said_about_the_clipped_update():
    update = {"a": np.full((400, 500), 2.0, np.float32), "b": np.zeros(100_000, np.float32)}
    found = protected(update, CLIP, NOISE, b"secret", "here")
    clipped = {name: x * (CLIP / measure(update)) for name, x in update.items()}
    noise = np.concatenate([(found[name].astype(np.float64) - clipped[name]).ravel() for name in update]) / (
        CLIP * NOISE
    )
    assert abs(noise.mean()) < 4 / math.sqrt(noise.size) and abs(noise.std() - 1) < 0.005
    assert stats.kstest(noise, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(noise[:200_000:2], noise[1:200_000:2])[0, 1]) < 0.01
    grid = 2.0 ** (math.frexp(NOISE * CLIP)[1] - 17)
    # whole multiples: the last bits are those of whole numbers, and tell nothing of the update
    for x in found.values():
        assert (np.abs(x) < 2**24 * grid).all() and (x / grid == np.rint(x / grid)).all()


def test_draws_are_of_the_secret_the_request_the_update_and_the_policy():
    """Two values under one noise would tell their difference; one value under several sizes of one draw would
    tell itself."""
    update = {"w": np.linspace(0, 0.1, 2000, dtype=np.float32)}

    def noise(update=update, clip=1.0, noise=1.0, secret=b"a", place="run/0/0/aa"):
        return (protected(update, clip, noise, secret, place)["w"].astype(np.float64) - update["w"]) / (
            clip * noise
        )

    first, other = noise(), {"w": np.nextafter(update["w"], np.float32(1))}
    assert (noise() == first).all()
    for changed in (
        noise(secret=b"b"),
        noise(place="run/1/0/aa"),
        noise(noise=2.0),
        noise(clip=2.0),
        noise(update=other),
    ):
        assert abs(np.corrcoef(first, changed)[0, 1]) < 0.1
    two = protected({"v": update["w"], "w": update["w"]}, 1.0, 1.0, b"a", "run/0/0/aa")
    assert abs(np.corrcoef(two["v"] - update["w"], two["w"] - update["w"])[0, 1]) < 0.1


def test_what_takes_no_noise_is_refused():
    with pytest.raises(NotFinite):
        protected({"w": np.array([1.0, np.nan])}, 1.0, 1.0, b"a")
    with pytest.raises(ValueError, match="'w' is of int8, to which no noise can be added"):
        protected({"w": np.zeros(3, np.int8)}, 1.0, 1.0, b"a")


def files_of(folder, limit=None, more="", noise=NOISE):
    """Site files of which one has a site that clips and adds noise itself."""
    files, path = site_files(folder=folder), folder / "policy.toml"
    fields = f'clip = {CLIP}\nnoise = {noise}\ndelta = {DELTA}\nfields = ["weight", "examples", "data"]\n'
    limit = "" if limit is None else f"epsilon = {limit}\n"
    path.write_text(f'site = "{NAMES[WHO]}"\n[tasks]\nmode = "first-use"\n[leaving]\n{fields}{limit}{more}')
    files[WHO] = dataclasses.replace(files[WHO], policy=path)
    with contextlib.suppress(FileExistsError):
        Ledger.begin(folder / NAMES[WHO])
    return files


def updates(folder):
    return [
        one.about for one in show(folder / NAMES[WHO] / "audit", what="left") if one.about["kind"] == "update"
    ]


def test_a_study_without_noise_leaves_with_the_sites_own_and_is_counted_over_restarts(tmp_path):
    """And a run that falls back to an earlier checkpoint gets the same bytes, or another answer, which is
    spent anew."""
    mu = [(2 / NOISE) ** 2 * n for n in (1, 2, 3)]
    any_model = '[evaluation]\nmodels = "any"\n'
    with federation(COMPOSED, files=files_of(tmp_path, more=any_model), folder=tmp_path) as (fed, _, _):
        first = fed.init(jax.random.key(1))
        second, _ = fed.run(first, ALL)
        fed.run(second, ALL)
        said = updates(tmp_path)
        assert [(one["clip"], one["noise"], one["delta"], one["told"]) for one in said] == [
            (CLIP, NOISE, DELTA, told) for told in mu[:2]
        ]
        assert [one["epsilon"] for one in said] == pytest.approx([epsilon(told, DELTA) for told in mu[:2]])
    # others: all is on the disk
    with federation(COMPOSED, files=files_of(tmp_path, more=any_model), folder=tmp_path) as (
        fed,
        _,
        _,
    ):
        fed.init(jax.random.key(1))
        fed.run(second, ALL)
        again = updates(tmp_path)[-1]
        # the same bytes, which tell nothing new
        assert again["digest"] == said[1]["digest"] and again["told"] == mu[1]
        other = second._replace(server=jax.tree.map(lambda x: x + 1, second.server))
        fed.run(other, ALL)
        assert updates(tmp_path)[-1]["told"] == mu[2] and updates(tmp_path)[-1]["digest"] != said[1]["digest"]


def test_the_noise_is_about_what_the_study_sends_and_of_the_size_that_the_policy_says(tmp_path):
    """As the sum of squares of what came, against that of the same site without such a policy."""
    with federation(COMPOSED, files=files_of(tmp_path, noise=1e-3), folder=tmp_path) as (fed, _, _):
        noisy = fed.run(fed.init(jax.random.key(1)), [WHO])[0].params
        start = fed.init(jax.random.key(1)).params
    with federation(COMPOSED) as (fed, _, _):
        plain = fed.run(fed.init(jax.random.key(1)), [WHO])[0].params
    moved = np.concatenate(
        [
            np.ravel(np.subtract(a, b))
            for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(start), strict=True)
        ]
    )
    found = np.concatenate(
        [
            np.ravel(np.subtract(a, b))
            for a, b in zip(jax.tree.leaves(noisy), jax.tree.leaves(start), strict=True)
        ]
    )
    short = moved * min(1, CLIP / np.linalg.norm(moved))
    assert 0 < np.abs(found - short).max() < 6e-3 * CLIP


def test_no_more_leaves_once_the_epsilon_is_spent(tmp_path):
    limit = epsilon(2 * (2 / NOISE) ** 2, DELTA) + 0.01
    with federation(COMPOSED, files=files_of(tmp_path, limit), folder=tmp_path) as (fed, _, _):
        state = fed.init(jax.random.key(1))
        clients = []
        for _ in range(3):
            state, seen = fed.run(state, ALL)
            clients.append(float(seen["clients"]))
    assert clients == [4, 4, 3] and len(updates(tmp_path)) == 2


def test_a_missing_account_is_refused_and_never_begun_anew(tmp_path):
    files = files_of(tmp_path)
    (tmp_path / NAMES[WHO] / "told.json").unlink()
    with federation(COMPOSED, files=files, folder=tmp_path) as (fed, _, _):
        state, seen = fed.run(fed.init(jax.random.key(1)), ALL)
        assert float(seen["clients"]) == 3 and not updates(tmp_path)
        said = [one.about for one in show(tmp_path / "coordinator" / "audit", what="declined")]
        assert [one["code"] for one in said] == [
            "no-account"
        ] and "fedjax-core account begin site.toml" in said[0]["reason"]
        Ledger.begin(tmp_path / NAMES[WHO])
        assert float(fed.run(state, ALL)[1]["clients"]) == 4
    with pytest.raises(FileExistsError):
        Ledger.begin(tmp_path / NAMES[WHO])


def test_one_account_of_two_studies_of_an_institution_counts_both(tmp_path):
    """Each is a process of its own, and sees what the other has told; without the file nothing leaves,
    whatever its own log says."""
    Ledger.begin(tmp_path / "account")
    one, two = (Ledger(tmp_path / name, tmp_path / "account") for name in ("heart", "lung"))
    for ledger, round in ((one, 0), (two, 1), (one, 2)):
        with ledger.alone():
            told = ledger.add(f"run/{round}/0", NOISE, f"{round:x}", asked(round))
        assert told == (round + 1) * (2 / NOISE) ** 2 == one.privacy_loss == two.privacy_loss
    assert json.loads((tmp_path / "account" / "told.json").read_text())["told"] == told
    (tmp_path / "account" / "told.json").unlink()
    with pytest.raises(ValueError, match="there is none: restore"):
        Ledger(tmp_path / "heart", tmp_path / "account").check()


@pytest.mark.parametrize("uplink", [fc.uplink.quantize(8), fc.uplink.topk(0.5)])
def test_a_study_that_sends_whole_numbers_is_refused_before_any_work(tmp_path, uplink):
    composed = fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.1)), uplink=uplink)
    with federation(composed, files=files_of(tmp_path), folder=tmp_path) as (fed, _, _):
        assert float(fed.run(fed.init(jax.random.key(1)), ALL)[1]["clients"]) == 3
    refused = [one.about["reason"] for one in show(tmp_path / NAMES[WHO] / "audit", what="refused")]
    assert refused and all(
        reason.endswith("leave that stage out (leaving.clip) [whole]") for reason in refused
    )


def test_a_weight_that_is_no_count_is_not_believed(tmp_path):
    """A study could put what it likes there, as a whole number, too."""
    odd = fc.compose(fc.algorithms.fedavg(task(), optax.sgd(0.1), weighting=lambda seen: seen.examples * 3))
    with federation(odd, files=files_of(tmp_path), folder=tmp_path) as (fed, _, _):
        assert float(fed.run(fed.init(jax.random.key(1)), ALL)[1]["clients"]) == 3
    (refused,) = [one.about for one in show(tmp_path / NAMES[WHO] / "audit", what="refused")]
    assert "the report's weight is not a count [weight]" in refused["reason"]


def test_the_account_is_what_dp_accounting_says():
    """Rounds of a Gaussian mechanism whose two values are 2 clips apart."""
    for noise, rounds in ((2.0, 1), (8.0, 30), (40.0, 400)):
        mine = epsilon(rounds * (2 / noise) ** 2, DELTA)
        assert privacy.epsilon(noise / 2, rounds=rounds, delta=DELTA, sampling="everyone") == pytest.approx(
            mine, abs=1e-3
        )
