"""The benchmarks on tiny sizes: the workloads are what they say, the engines do the same work, and the tables
are printed."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_core as fc
from tests.conftest import REPOSITORY

PARAMETERS = {"synth": 610, "mlp": 199_210, "emnist": 1_206_590, "char-lstm": 820_522, "transformer": 814_720}


@pytest.fixture
def bench():
    import bench_workloads

    return bench_workloads


@pytest.fixture
def engine():
    import bench_engine

    return bench_engine


@pytest.fixture
def tiny(bench, monkeypatch):
    """Every workload on a perceptron of a few numbers and clients of a few examples."""
    small = replace(
        bench.WORKLOADS["mlp"],
        batch_size=2,
        cohort=3,
        data=bench.noise((4,), 3, 5, 10),
        init=bench.layers(4, 5, 3),
        quick=None,
    )
    monkeypatch.setattr(bench, "WORKLOADS", dict.fromkeys(("synth", "mlp"), small))
    return small


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_workload_has_its_published_size_and_one_loss_an_example(bench, name):
    workload = bench.WORKLOADS[name]
    params = jax.eval_shape(workload.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]
    data = workload.data()
    assert len(data.x) == len(data.y) == data.offsets[-1] and len(data.offsets) > workload.cohort
    x, y = data.x[: workload.batch_size], data.y[: workload.batch_size]
    found = jax.eval_shape(lambda p: bench.losses(workload.logits(p, x), y), params)
    assert (found.shape, found.dtype) == ((workload.batch_size,), jnp.float32)


def test_the_loss_of_a_text_is_the_mean_over_its_characters(bench):
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75]]]))
    np.testing.assert_allclose(
        bench.losses(logits, jnp.array([[0, 1]])), [-(np.log(0.5) + np.log(0.75)) / 2], rtol=1e-6
    )


@pytest.mark.parametrize("name", ["char-lstm", "transformer"])
def test_no_character_sees_a_later_one(bench, name):
    logits = jax.jit({"char-lstm": bench._lstm, "transformer": bench._transformer(2)}[name])
    params = {"char-lstm": bench._lstm_init(3, 4, 2), "transformer": bench._transformer_init(4, 1, 6)}[name](
        jax.random.key(0)
    )
    x = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
    changed = logits(params, x.at[:, 4].set(50)) != logits(params, x)
    assert not changed[:, :4].any() and changed[:, 4:].any(axis=-1).all()


def test_the_cnn_as_a_pure_function_and_as_a_flax_module_agree(bench, engine):
    workload = bench.WORKLOADS["emnist"]
    params, x = workload.init(jax.random.key(0)), jax.random.uniform(jax.random.key(1), (2, 28, 28, 1))
    batch = fc.Batch({"x": x, "y": jnp.zeros(2, jnp.int32)}, jnp.ones(2))
    task, renamed = engine.task("emnist", workload)
    assert jax.tree.map(jnp.shape, renamed(params)) == jax.tree.map(
        jnp.shape, jax.eval_shape(task.init, jax.random.key(0))
    )
    expected = jax.jit(task.predict)(renamed(params), batch)
    for logits in (workload.logits, workload.quick):
        np.testing.assert_allclose(jax.jit(logits)(params, x), expected, atol=1e-5)


def test_ours_and_the_limit_take_the_same_steps(engine, tiny):
    """A client of eight equal examples, so that order does not matter: four steps of two."""
    x, y = np.ones((8, 4), np.float32), np.ones(8, np.int32)
    simulator, state = engine.simulator("mlp", tiny, engine.bench.Data(x, y, np.array([0, 8])), lanes=1)
    after, examples = engine.rounds(simulator, state, 1)()
    expected = engine.sgd(tiny.logits, tiny.lr, 2)(tiny.init(jax.random.key(0)), x, y)
    assert examples == 8
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), after.params, expected)


def test_uneven_clients_have_one_of_100_times_the_median_and_equal_ones_as_much_work(engine):
    skewed, balanced = engine.uneven(50, batch_size=10)
    assert skewed.max() == 100 * np.median(skewed) and (np.sort(skewed)[:-1] < skewed.max() / 10).all()
    assert skewed.sum() == balanced.sum() and set(balanced) == {np.median(skewed)}


def test_the_engines_table(engine, tiny, capsys):
    engine.main(engine.Settings(workloads=("mlp",), turns=2, seconds=0.001, lanes=2, cores=1, fedjax=False))
    out = capsys.readouterr().out
    assert "examples/s" in out and "ours" in out and "limit" in out and "(>= 1)" in out


@pytest.mark.slow  # processes of their own
def test_scales_tables(tiny, capsys):
    import bench_scale

    small = {
        "cohorts": (2, 4),
        "populations": (10, 20),
        "widths": (4,),
        "devices": (1, 2),
        "rounds": 12,
        "started": "synth",
        "workloads": ("mlp",),
        "fixed": (1, 2),
    }
    bench_scale.main(bench_scale.Settings(turns=1, seconds=0.001, cores=1, **small))
    out = capsys.readouterr().out
    for title in (
        "lanes chosen",
        "clients a round",
        "clients altogether",
        "resident MB",
        "hidden layers of",
        "devices",
        "started again",
    ):
        assert title in out


def test_rounds_of_random_cohorts_run_two_programs(tiny):
    import bench_scale

    assert bench_scale.programs(bench_scale.Settings(rounds=12, lanes=2, cores=1)) <= 2


def test_a_population_written_to_files_is_read_back_and_run(tmp_path):
    import bench_scale

    bench_scale.write(tmp_path / "data", 30)
    result, examples = bench_scale.from_files(tmp_path / "data", 3, lanes=2)()
    assert len(fc.Clients.open(tmp_path / "data")) == 30 and examples > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.params))


def test_memory_is_measured_beside_the_plan(bench, tiny, monkeypatch):
    import bench_memory

    images = bench.noise((4,), 3, 1000, 3000)  # 60 MB: what the process takes beside them is lost in it
    monkeypatch.setitem(
        bench_memory.CASES,
        "data",
        bench_memory.CASES["data"]._replace(workload="mlp", data=images, cohort=3, lanes=2),
    )
    lanes, plan, found = bench_memory.grown("data", rounds=1)
    assert lanes == 2 and plan["total"] >= plan["data"] > 5e7 and found > 0.8 * plan["data"]


def test_a_profile_names_operations(tiny, tmp_path: Path, capsys):
    import profile_round

    profile_round.main(profile_round.Settings(workload="mlp", rounds=1, lanes=2, out=tmp_path))
    assert "1 rounds of mlp in 2 lanes" in capsys.readouterr().out
    assert list(tmp_path.glob("mlp/plugins/profile/*/*.trace.json.gz"))


@pytest.mark.slow  # 11 s
def test_a_federation_that_echoes_ends_where_it_began_and_its_table_is_printed(capsys):
    import bench_sites

    settings = bench_sites.Settings(
        cases=("overhead",), sites=(2, 10**6), parameters=(3,), turns=1, seconds=0.001
    )
    bench_sites.main(settings)
    out = capsys.readouterr().out
    assert "times bare Ray" in out and "left out: would need about" in out


def test_the_yardstick_is_the_published_network():
    import bench_cifar

    made = bench_cifar.simulator(bench_cifar.Settings(clients=3, images=2, cores=1, lanes=1))
    params = jax.eval_shape(made.round.algorithm.task.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_626_442
    with pytest.raises(SystemExit, match="multiple of 10"):
        bench_cifar.main(bench_cifar.Settings(rounds=15))


@pytest.mark.slow  # compiles the network
def test_the_yardstick_is_run(capsys):
    import bench_cifar

    bench_cifar.main(
        bench_cifar.Settings(rounds=6, every=2, clients=3, images=10, cohort=2, tested=20, cores=1, lanes=1)
    )
    assert "1500 rounds at that" in capsys.readouterr().out


def test_what_is_done_to_a_message_is_measured_part_by_part(capsys):
    import bench_sites

    table = bench_sites.messages(bench_sites.Settings(parameters=(3,), turns=1, seconds=0.001))
    assert table.row_count == 10


def test_a_slope_is_in_bytes_a_round():
    import bench_recovery

    rounds = np.arange(100)
    rise, error = bench_recovery.slope(rounds, 7e6 + 24.0 * rounds + np.where(rounds % 2, 50.0, -50.0))
    assert abs(rise - 24) < 2 * error < 1


@pytest.mark.slow  # starts a federation three times
def test_a_killed_coordinator_and_a_killed_site_come_back():
    import bench_recovery

    back = bench_recovery.coordinator_killed(3)
    assert 0 < back["imported"] < back["sites answer"] < back["first round done"]
    back = bench_recovery.site_killed(3)
    assert back["the round after the kill"] > back["a round"]


@pytest.mark.slow  # starts three Ray nodes
def test_who_merges_changes_no_bit_and_is_timed():
    options = ["--nodes", "2", "--parameters", "100", "--shares", "3", "--turns", "1"]
    script = [sys.executable, "-W", "ignore", "scripts/bench_merge.py", *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        script, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("100 parameters, 3 shares: driver ")


@pytest.mark.slow  # starts a federation twice
def test_rounds_over_links_are_timed_by_what_is_sent(capsys, monkeypatch):
    import bench_links

    monkeypatch.setenv(
        "PYTHONPATH", str(REPOSITORY / "scripts")
    )  # where sites find the study, as in links.sh
    ways = ("float32", "EDEN 2 bits, model 4 bits")
    bench_links.main(bench_links.Settings(parameters=100, sites=2, rounds=1, ways=ways))
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split(":")[0] for line in lines] == list(ways)
    assert lines[0].endswith("a report 400 bytes, the model 400")


def test_a_way_over_links_has_the_bytes_of_its_stages():
    import bench_links

    rows = 8192  # numbers that EDEN gives one scale
    up, down = bench_links.bytes_of("EDEN 2 bits, model 4 bits", rows)
    assert (up, down) == (rows * 2 / 8 + 8, rows * 4 / 8 + 8)
    with pytest.raises(ValueError, match="there is no way morse"):
        bench_links.main(bench_links.Settings(ways=("morse",)))
