"""The README's examples run as they are printed."""

import re

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from tests.conftest import REPOSITORY

EXAMPLES = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)


def test_the_first_example_trains_a_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(EXAMPLES[0], "README.md", "exec"), names)
    accuracy = float(re.search(r"'accuracy': ([0-9.]+)", capsys.readouterr().out)[1])
    labels = names["held_out"].columns["y"]
    # better than always naming the commonest class
    assert accuracy > 1.5 * np.bincount(labels).max() / len(labels)
    assert (tmp_path / "runs" / "readme" / "metrics.jsonl").exists()


def test_the_algorithm_of_your_own_is_gradient_descent():
    names: dict = {}
    exec(compile(EXAMPLES[1], "README.md", "exec"), names)
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    y = (x @ [1.0, -1.0]).astype(np.float32)
    clients = fc.Clients.from_list([{"x": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]}])
    task = fc.models.linear(features=2)
    ends = []
    for algorithm in (names["fedsgd"](task, lr=0.1), fc.algorithms.fedavg(task, local=optax.sgd(0.1))):
        sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=4)
        state, _ = sim.run(sim.init(jax.random.key(0)), [0, 1])
        ends.append(np.asarray(state.params["w"]))
    assert ends[0] == pytest.approx(ends[1], abs=1e-6)
    assert np.abs(ends[0]).max() > 0
