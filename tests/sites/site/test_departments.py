"""A site that trains its departments as clients of their own is the simulator in which all of them are
clients."""

import dataclasses
from functools import cache

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.data.batches import Plan
from fedjax_core.lanes import tune
from fedjax_core.metrics import summary
from fedjax_core.sites.audit import show
from fedjax_core.sites.doctor.checks import CHECKS, Settings, Unfit
from fedjax_core.sites.federation import Federation, Paused, Rules
from fedjax_core.sites.site.departments import Departments
from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.site.load import divided, load_data
from fedjax_core.sites.site.records import usable
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.uplink.base import stage
from fedjax_core.xla import convolutions, timing
from tests.contracts import assert_norm
from tests.sites.federations import COORDINATOR, drawing, federation

TASK = fc.models.linear(features=2)
# Divides by the number of clients, as noise for a sum does: which the coordinator must have right.
BY_CLIENTS = stage(
    "by_clients",
    finish=lambda state, value, info, key: (jax.tree.map(lambda x: 3 * x / info.clients, value), state),
)
UPLINK = fc.uplink.chain(fc.uplink.clip(0.2), fc.uplink.quantize(bits=8), BY_CLIENTS)
WARDS = {
    "charite": ["icu", "ear", "icu", "icu", "eye", "ear", "icu", "eye", "icu", "gyn", "gyn"],
    "mayo": [7, 3, 3, 7, 7],
}


@cache
def fedavg(uplink=UPLINK, server=None):
    return fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1), server), uplink=uplink)


def site_columns():
    rng, found = np.random.default_rng(0), {}
    for name, wards in {**WARDS, "oslo": None}.items():
        n = 4 if wards is None else len(wards)
        found[name] = {
            "x": rng.normal(size=(n, 2)).astype(np.float32),
            "y": rng.normal(size=n).astype(np.float32),
        }
        found[name] |= {} if wards is None else {"ward": np.array(wards)}
    return found


def site_files(folder=None):
    """Two sites that are divided, and one that is not."""
    return [
        SiteFile(
            name=name,
            data=data,
            departments="ward" if "ward" in data else None,
            folder=None if folder is None else folder / name,
        )
        for name, data in site_columns().items()
    ]


def assert_same_bits(got, expected):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def everyone(sites=("charite", "mayo", "oslo")):
    """The departments of these sites, each written down as a client."""
    rows, ids = [], []
    for name in sites:
        data = site_columns()[name]
        wards = data.pop("ward", None)
        for ward in [None] if wards is None else sorted(set(wards.tolist())):
            rows.append(data if ward is None else {key: x[wards == ward] for key, x in data.items()})
            ids.append(name if ward is None else f"{name}/{ward}")
    return fc.Clients.from_list(rows, ids=ids)


def simulated(composed, clients, rounds, **plan):
    sim = fc.Simulator(composed, clients, lanes=2, **({"batch_size": 4, "epochs": 2} | plan))
    state = sim.init(jax.random.key(1))
    for _ in range(rounds):
        state, seen = sim.run(state, np.arange(len(clients)))
    return sim, state, seen


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """(the folder, the state after two rounds, the metrics of the last) of a federation with departments."""
    folder = tmp_path_factory.mktemp("departments")
    with federation(fedavg(), files=site_files(folder), folder=folder, departments=True) as (fed, _, _):
        state = fed.init(jax.random.key(1))
        for _ in range(2):
            state, seen = fed.run(state, [0, 1, 2])
    return folder, state, seen


def test_departments_of_sites_end_where_clients_of_a_simulator_end(ran):
    _, state, seen = ran
    _, expected, numbers = simulated(fedavg(), everyone(), 2)
    assert_norm(state.params, expected.params, 1e-6)
    of_sites = {"missing": 0.0, "bits_up": 3 * 3 * 32.0}  # three sites send one mean each, of three numbers
    assert summary(seen) == pytest.approx({**summary(numbers), **of_sites}, rel=1e-6)
    assert summary(seen)["clients"] == 7


def test_under_secure_aggregation_the_sum_is_that_of_all_departments_to_the_last_bit():
    """By whole numbers, which no order of adding changes; a site's weight is that of all of its
    departments."""
    hidden = fc.uplink.chain(fc.uplink.clip(0.2), fc.uplink.secure(bound=0.2, bits=16, weights=2**10))
    composed = fc.compose(
        fc.algorithms.fedavg(TASK, optax.sgd(0.1)), uplink=hidden, aggregator=fc.aggregators.total()
    )
    with federation(composed, files=site_files(), departments=True) as (fed, _, transport):
        state = fed.init(jax.random.key(1))
        for _ in range(2):
            state, seen = fed.run(state, [0, 1, 2])
    _, expected, _ = simulated(composed, everyone(), 2)
    assert_same_bits(state.params, expected.params)
    assert float(seen["clients"].total) == 7 and not any(b"icu" in raw for raw in transport.received)


def test_logs_say_how_many_departments_a_report_is_of_and_nobody_else_which(ran):
    folder, _, _ = ran
    for name, count in {"charite": 4, "mayo": 2, "oslo": 1}.items():
        ledger = show(folder / name / "audit")
        assert [
            one.about["clients"] for one in ledger if one.what == "left" and one.about["kind"] == "update"
        ] == [count, count]
        heard = show(folder / "coordinator" / "audit", site=name)
        assert [one.about["clients"] for one in heard if one.what == "update"] == [count, count]
    said = b"".join(path.read_bytes() for path in (folder / "coordinator" / "audit").iterdir())
    assert not any(ward in said for ward in (b"icu", b"ear", b"eye", b"gyn", b"ward"))


_MORE = {
    "fedprox": (lambda: fc.compose(fc.algorithms.fedprox(TASK, 0.1, optax.sgd(0.1))), {}),
    "momentum, half": (lambda: fedavg(fc.uplink.half(), optax.sgd(1.0, momentum=0.5)), {}),
    "a buffer of all": (fedavg, {"buffer": fc.Buffer(size=3)}),
    "from files": (fedavg, {"saved": True}),
    "one lane": (fedavg, {"lanes": 1}),
    "two lanes": (fedavg, {"lanes": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _MORE)
def test_more_end_where_the_simulator_ends(name, monkeypatch, tmp_path):
    build, settings = _MORE[name]
    settings = dict(settings)
    files = site_files()
    if settings.pop("saved", False):
        clients = load_data(files[0])
        fc.Clients(clients.columns, clients.offsets, [one.partition("/")[2] for one in clients.ids]).save(
            tmp_path / "charite"
        )
        files[0] = SiteFile(name="charite", data=tmp_path / "charite")
    if lanes := settings.pop("lanes", None):
        monkeypatch.setattr(tune, "guess", lambda composed: lanes)
    sim, expected, _ = simulated(build(), everyone(), 5)
    with federation(build(), files=files, departments=True, **settings) as (fed, _, _):
        state = fed.init(jax.random.key(1))
        for _ in range(5):
            state, _ = fed.run(state, [0, 1, 2])
        at_sites, at_hand = fed.evaluate(state), sim.evaluate(expected)
    assert_norm(state.params, expected.params, 1e-6)
    assert at_sites.pooled == pytest.approx(at_hand.pooled, rel=1e-6)
    assert at_sites.sizes.tolist() == [11, 5, 4]


@pytest.mark.slow
def test_columns_are_prepared_as_those_of_whole_sites():
    steps = [fc.preprocess.Standardise("x")]
    fitted = fc.preprocess.fit(steps, everyone())
    _, expected, _ = simulated(fedavg(), fitted.apply(everyone()), 3)
    with federation(fedavg(), files=site_files(), departments=True, prepare=steps) as (fed, _, _):
        state = fed.init(jax.random.key(1))
        for _ in range(3):
            state, _ = fed.run(state, [0, 1, 2])
    assert_norm(state.params, expected.params, 1e-6)


@pytest.mark.slow
def test_sites_and_coordinator_that_start_again_end_bit_for_bit(ran, tmp_path):
    def fit(rounds):
        with federation(fedavg(), files=site_files(tmp_path), folder=tmp_path, departments=True) as (
            fed,
            _,
            _,
        ):
            keeping = {"run_dir": tmp_path / "run", "checkpoint_every": 1, "progress": False}
            return fc.fit(fed, rounds, cohorts=lambda r: [0, 1, 2], key=jax.random.key(1), **keeping).state

    fit(1)
    assert_same_bits(fit(2).params, ran[1].params)


def visited(composed, clients, plan, round=3, watch=None):
    """What departments at work anew send in this round, from a model of their site's own."""
    params = {"w": np.array([0.5, -1.0], np.float32), "b": np.float32(0.25)}
    draws = drawing(jax.random.key(1), round, clients.addresses[0])
    return Departments(composed, clients, plan).visit(params, draws, watch)


def test_a_site_that_starts_again_sends_the_same_bits_and_is_heard_between_groups(monkeypatch):
    monkeypatch.setattr(tune, "guess", lambda composed: 2)
    monkeypatch.setattr(tune, "choose", lambda *_, **__: pytest.fail("measured"))
    clients, plan, told = everyone(["charite"]), Plan(4, epochs=2), []
    first, again = (visited(fedavg(), clients, plan, watch=told.append) for _ in range(2))
    assert_same_bits(first, again)
    assert told == [6, 10] * 2  # of 5, 2, 2 and 2 examples: two passes of batches of 4

    def stop(steps):
        raise TimeoutError(steps)

    with pytest.raises(TimeoutError, match="6"):
        visited(fedavg(), clients, plan, watch=stop)


def test_nothing_leaves_where_one_department_has_nothing_that_may_be_used():
    clients = everyone(["mayo"])
    assert bool(visited(fedavg(), clients, Plan(4, epochs=2)).fine)
    x = clients.columns["x"].copy()
    x[0] = 1e18  # from which training diverges
    assert not bool(
        visited(
            fedavg(), fc.Clients({**clients.columns, "x": x}, clients.offsets, clients.ids), Plan(4, epochs=2)
        ).fine
    )


@pytest.mark.slow
def test_convolutions_are_not_measured_at_a_site(monkeypatch):
    monkeypatch.setattr(tune, "guess", lambda composed: 2)
    monkeypatch.setattr(convolutions, "WORTH_MEASURING", 0)
    monkeypatch.setattr(timing, "_measure", lambda *_: pytest.fail("measured"))
    task = fc.models.cnn(classes=2, shape=(8, 8, 1))
    rng = np.random.default_rng(0)
    rows = [{"x": rng.normal(size=(n, 8, 8, 1)).astype(np.float32), "y": np.arange(n) % 2} for n in (4, 3)]
    clients = fc.Clients.from_list(rows, ids=["charite/a", "charite/b"])
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1)))
    draws = drawing(jax.random.key(1), 0, clients.addresses[0])
    assert bool(
        Departments(composed, clients, Plan(4, epochs=1)).visit(task.init(jax.random.key(0)), draws).fine
    )


@pytest.mark.parametrize(
    ("composed", "said"),
    [
        (lambda: fc.compose(fc.algorithms.scaffold(TASK, 0.1, 4)), "keep state between rounds"),
        (lambda: fc.compose(fc.algorithms.mime(TASK, optax.sgd(0.1))), "2 exchanges"),
        (lambda: fedavg(fc.uplink.feedback(fc.uplink.quantize(bits=8))), "keeps state at each client"),
        (
            lambda: fc.compose(
                fc.algorithms.fedavg(TASK, optax.sgd(0.1), weighting=fc.algorithms.uniform),
                aggregator=fc.aggregators.trimmed_mean(0.1),
            ),
            "aggregators.mean",
        ),
    ],
)
def test_what_cannot_be_one_mean_is_refused_where_the_study_is_made(composed, said):
    with pytest.raises(ValueError, match=f"departments of a site cannot be the clients of this: .*{said}"):
        Study(composed(), 4, departments=True)


def test_both_ends_must_agree_that_departments_are_clients():
    whole, apart = Study(fedavg(), 4), Study(fedavg(), 4, departments=True)
    assert whole.hash != apart.hash
    with pytest.raises(
        ValueError, match=r"divided into departments, 4 of them, .* agree on a study with departments=True"
    ):
        Site(site_files()[0], whole, COORDINATOR.public)
    assert Site(site_files()[2], apart, COORDINATOR.public).context.data.counted == {"clients": 1}


def test_a_site_is_divided_by_a_column_or_by_what_its_data_are(tmp_path):
    about = site_files()[0]
    found = load_data(about)
    assert found.ids.tolist() == ["charite/ear", "charite/eye", "charite/gyn", "charite/icu"]
    np.testing.assert_array_equal(found[3]["x"], about.data["x"][[0, 2, 3, 6, 8]])
    everyone(["mayo"]).select([0, 1]).save(tmp_path / "data")
    saved = load_data(SiteFile(name="mayo", data=tmp_path / "data"))
    assert saved.ids.tolist() == ["mayo/mayo/3", "mayo/mayo/7"]
    with pytest.raises(ValueError, match="leave `departments` out"):
        load_data(SiteFile(name="mayo", data=tmp_path / "data", departments="ward"))
    with pytest.raises(ValueError, match="'floor' names no column of charite's data, which has ward, x, y"):
        load_data(dataclasses.replace(about, departments="floor"))
    with pytest.raises(ValueError, match=r"column 'x', .* got float32\[11, 2\]"):
        load_data(dataclasses.replace(about, departments="x"))
    (tmp_path / "site.toml").write_text('name = "charite"\ndata = "data"\ndepartments = "ward"')
    assert SiteFile.read(tmp_path / "site.toml").departments == "ward"


def test_bad_records_leave_their_own_department():
    columns = {"x": np.array([[1.0], [np.nan], [3.0], [np.nan]], np.float32), "ward": np.array([1, 1, 2, 3])}
    clients = divided("mayo", columns, "ward", allow_nan=True)
    good, bad = usable(clients, TASK._replace(check=None))
    assert (
        bad.tolist() == [1, 3]
        and good.sizes.tolist() == [1, 1, 0]
        and good.ids.tolist() == clients.ids.tolist()
    )


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("", "does not let 'clients' leave"),
        (
            'fields = ["weight", "examples", "data", "clients"]\n[minimum]\ndepartment = 3',
            "for a reason that is for its staff",
        ),
    ],
)
def test_the_policy_of_a_site_has_a_say(policy, said, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(f'site = "mayo"\n[tasks]\nmode = "first-use"\n[leaving]\n{policy}')
    files = [site_files()[0], dataclasses.replace(site_files(tmp_path)[1], policy=path)]
    with (
        pytest.raises(Paused, match="mayo"),
        federation(fedavg(), files=files, folder=tmp_path, departments=True),
    ):
        pass
    (reason,) = [
        one.about["reason"] for one in show(tmp_path / "coordinator" / "audit") if one.what == "declined"
    ]
    assert said in reason
    (true,) = [one.about["reason"] for one in show(tmp_path / "mayo" / "audit", what="refused")]
    assert true == reason or "minimum.department" in true


def test_the_time_to_train_is_not_limited_within_departments():
    with pytest.raises(ValueError, match=r"train_seconds=5\) cannot be kept with departments=True"):
        Federation(
            fedavg(),
            site_files(),
            batch_size=4,
            departments=True,
            rules=Rules(train_seconds=5.0),
            transport="in-process",
        )


def test_a_run_of_whole_sites_is_not_gone_on_with_by_departments(tmp_path):
    whole = [
        dataclasses.replace(one, departments=None, data=everyone([one.name]))
        for one in site_files()
        if one.name == "oslo"
    ]
    with federation(fedavg(), files=whole, folder=tmp_path):
        pass
    anew = federation(fedavg(), files=whole, folder=tmp_path, departments=True)
    with pytest.raises(ValueError, match=r"oslo had no departments: begin another one"), anew:
        pass


def study(departments):
    return Study(fedavg(), 4, departments=departments)


def mayo():
    return site_columns()["mayo"]


def test_the_doctor_looks_at_departments(tmp_path):
    here, path = "tests.sites.site.test_departments", tmp_path / "policy.toml"
    path.write_text('site = "mayo"\n[tasks]\nmode = "first-use"\n[minimum]\ndepartment = 3')
    about = SiteFile(
        name="mayo",
        data=f"{here}:mayo",
        study=f"{here}:study",
        arguments={"departments": True},
        departments="ward",
        policy=path,
    )
    assert "5 examples" in CHECKS["data"](about, Settings())
    with pytest.raises(Unfit, match="a department has 2 examples, and the policy asks for 3"):
        CHECKS["labels"](about, Settings())
    with pytest.raises(Unfit, match="does not let 'clients' leave"):
        CHECKS["policy"](about, Settings())
    with pytest.raises(ValueError, match="clients of this study are whole sites"):
        CHECKS["data"](dataclasses.replace(about, arguments={"departments": False}), Settings())
