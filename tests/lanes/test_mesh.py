import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.lanes import memory
from fedjax_core.lanes.mesh import split
from fedjax_core.xla import options
from tests.contracts import assert_norm, by_plain_loops, run, simulator


class Block(nn.Module):
    """A transformer of one block on tokens [B, 8]: logits [B, 16]."""

    width: int = 64

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(16, self.width)(tokens)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        x = x + nn.Dense(self.width)(nn.gelu(nn.Dense(8 * self.width)(nn.LayerNorm()(x))))
        return nn.Dense(16)(x.mean(axis=1))


def transformer(mesh=None, lanes=2, **settings):
    rng = np.random.default_rng(0)
    data = fc.Clients.from_list(
        [
            {"x": rng.integers(0, 16, (n, 8)).astype(np.int32), "y": rng.integers(0, 16, n).astype(np.int32)}
            for n in (5, 1, 9, 4)
        ]
    )
    example = {"x": np.zeros((2, 8), np.int32), "y": np.zeros(2, np.int32)}
    task = fc.models.from_flax(
        Block(),
        example,
        loss=lambda outputs, batch: optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"]),
        inputs=lambda batch: batch["x"],
    )
    algorithm = fc.algorithms.scaffold(task, 0.1, len(data))
    return fc.Simulator(
        fc.compose(algorithm), data, batch_size=4, epochs=1, lanes=lanes, mesh=mesh, **settings
    )


def after_two_rounds(sim):
    state = sim.init(jax.random.key(0))
    for cohort in ([0, 1, 2], [3, 2, 0]):
        state, _ = sim.run(state, cohort)
    return state


@pytest.mark.slow  # a minute each
@pytest.mark.parametrize("shape", [(1, 8), (4, 2)])
def test_a_model_split_inside_its_lanes_learns_the_same(shape):
    mesh = jax.make_mesh(shape, ("lanes", "model"))
    one, split_up = (
        after_two_rounds(transformer()),
        after_two_rounds(transformer(mesh, lanes=max(2, shape[0]))),
    )
    assert_norm(split_up.params, one.params, 1e-6)
    wide = [x for x in jax.tree.leaves(split_up.params) if x.size > 10_000]
    assert wide and all(x.addressable_shards[0].data.size * shape[1] == x.size for x in wide)


@pytest.mark.slow  # 28 s of compiling
def test_a_model_that_does_not_fit_one_device_fits_eight(monkeypatch):
    needed = transformer().plan(3)
    monkeypatch.setattr(memory, "device_bytes", lambda: needed.total // 2)
    with pytest.raises(ValueError, match=r"needs at least .* MB on each device, which has .* MB"):
        transformer().plan(3)
    # which the eight, parts of one processor, share
    monkeypatch.setattr(memory, "device_bytes", lambda: 8 * (needed.total // 2))
    mesh = jax.make_mesh((1, 8), ("lanes", "model"))
    sim = transformer(mesh)
    assert sim.plan(3).limit == needed.total // 2
    assert sim.plan(3).working < needed.working / 3
    after_two_rounds(sim)


@pytest.mark.parametrize("stream", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_axes_for_any_algorithm(stream):
    mesh = jax.make_mesh((2, 4), ("lanes", "model"))
    state, _ = run(simulator("mime, clip, feedback", mesh=mesh, lanes=4, stream=stream))
    assert_norm(state.params, by_plain_loops("mime, clip, feedback")[0].params, 1e-6)


def test_how_arrays_are_split():
    assert split((10, 64, 32), "model", 8) == jax.sharding.PartitionSpec(None, "model", None)
    assert (
        split((64,), "model", 8)
        == split((3, 5), "model", 8)
        == split((), "model", 8)
        == jax.sharding.PartitionSpec()
    )


def test_cores_are_devices_on_one_copy_of_the_data():
    mesh = fc.cores(2)
    assert mesh.axis_names == ("lanes",) and mesh.size == 2
    one, two = transformer(), transformer(mesh)
    for x in jax.tree.leaves(two._data):
        first, second = (shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards)
        assert first == second
    assert two.plan(3).data == one.plan(3).data // 2 and two.plan(3).limit == one.plan(3).limit // 2


def test_cores_that_came_too_late_or_make_no_sense_are_refused():
    with pytest.raises(
        RuntimeError, match=r"JAX has begun with 8 CPU devices, and 9 are wanted: call fc.cores\(\) before"
    ):
        fc.cores(9)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        fc.cores(0)


def test_what_xla_does_not_know_is_not_asked_for(monkeypatch, caplog):
    monkeypatch.setattr(options, "_ONE_THREAD", {"xla_cpu_no_such_option": "1"})
    with caplog.at_level("INFO", "fedjax_core"):
        assert options.compiler_options(cores=True) == options.compiler_options(cores=False)
    assert "compiling without xla_cpu_no_such_option" in caplog.text


def on_cores(script: str, *arguments: str, **environment: str) -> list[str]:
    """The lines that a fresh Python prints for this script, of which nobody has said how many devices it
    has."""
    alone = {
        name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    done = subprocess.run(
        [sys.executable, "-c", MADE + script, *arguments],
        env=alone | environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


ROOT = Path(__file__).resolve().parents[2]
MADE = """
import sys, jax, numpy as np, optax, flax.linen as nn
import fedjax_core as fc
from fedjax_core import machine
from fedjax_core.lanes import tune
machine.cores, tune._BUDGET_SECONDS = lambda: 2, 0.0  # whatever machine this is
clients = fc.synthetic.synthetic(1, 1, clients=6, seed=0)
example = {name: column[:2] for name, column in clients.columns.items()}
loss = lambda outputs, batch: optax.softmax_cross_entropy_with_integer_labels(outputs, batch["y"])
task = fc.models.from_flax(nn.Dense(10), example, loss=loss)
composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(0.05)))
def devices(**settings):
    return fc.Simulator(composed, clients, batch_size=20, epochs=1, **settings).settings["devices"]
def trained(rounds, folder):
    simulator = fc.Simulator(composed, clients, batch_size=20, epochs=1)
    fc.fit(simulator, rounds=rounds, cohorts=fc.cohorts.everyone(6), run_dir=folder, checkpoint_every=1, progress=False)
    return simulator.settings["devices"]
"""


def test_a_simulator_of_a_fresh_process_has_lanes_on_every_core():
    said = on_cores(
        'print(devices(), devices(lanes=3), devices(lanes=4), devices(client_state="host"), devices(mesh=None))'
    )
    assert said == ["2 1 2 1 1"]


def test_a_simulator_that_comes_after_a_computation_says_what_it_costs():
    first, warning = on_cores("jax.numpy.zeros(1); print(devices(), devices())")
    assert first == "1 1"
    assert "JAX had begun before the first simulator was made, with one device for the 2 cores" in warning
    assert "JAX_NUM_CPU_DEVICES=2" in warning


@pytest.mark.slow
def test_how_many_devices_there_are_is_for_the_environment_to_say():
    assert on_cores("jax.numpy.zeros(1); print(devices(mesh=None))") == ["1"]
    assert on_cores("jax.numpy.zeros(1); print(devices())", JAX_NUM_CPU_DEVICES="2") == ["2"]
    assert on_cores("print(devices())", JAX_NUM_CPU_DEVICES="8") == ["1"]  # somebody wants these otherwise


@pytest.mark.slow
def test_a_run_goes_on_with_as_many_devices_as_it_began_with(tmp_path):
    first, _ = on_cores("jax.numpy.zeros(1); print(trained(1, sys.argv[1]))", str(tmp_path))
    again, *_ = on_cores("print(trained(2, sys.argv[1]))", str(tmp_path))
    assert (first, again) == ("1", "1")
    assert on_cores(
        "print(trained(1, sys.argv[1]), trained(1, sys.argv[2]))", str(tmp_path / "a"), str(tmp_path / "b")
    ) == ["2 2"]
