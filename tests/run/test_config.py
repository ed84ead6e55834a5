"""A configuration is the same for the same build in any process, and differs by a telling name."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.run.config import describe, difference, versions, without_code
from tests.run.small import cohorts, simulator

RATE = 0.5


class Net(nn.Module):
    """A module with settings, one of them a function."""

    hidden: int = 8
    activation: object = nn.relu

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(self.activation(nn.Dense(self.hidden)(x)))


class Scaled:
    """A callable object."""

    def __init__(self, factor):
        self.factor, self._cache = factor, object()

    def __call__(self, x):
        return self.factor * x


def applied(module):
    return lambda params, batch: module.apply(params, batch["x"])


def mentions_a_global(x):
    return RATE * x


def recursive(x):
    return recursive(x - 1) if x else 0


def power(x, exponent=2, *, scale=1.0):
    return scale * x**exponent


def schedule(steps):
    return optax.sgd(optax.cosine_decay_schedule(0.1, steps))


@pytest.mark.parametrize(
    "one, other, said",
    [
        (lambda: optax.sgd(0.1), lambda: optax.sgd(0.2), r"update.*step_size: -0\.1 -> -0\.2"),
        (lambda: optax.adam(1e-3), lambda: optax.adam(1e-3, b1=0.8), r"b1: 0\.9 -> 0\.8"),
        (lambda: schedule(100), lambda: schedule(200), r"decay_steps: 100 -> 200"),
        (
            lambda: optax.chain(optax.clip(1.0), optax.sgd(1.0)),
            lambda: optax.chain(optax.clip(2.0), optax.sgd(1.0)),
            r"max_delta: 1\.0 -> 2\.0",
        ),
        (lambda: optax.sgd(1.0), lambda: optax.sgd(1.0, momentum=0.9), r"\(absent\) ->|->"),
        (lambda: applied(Net(8)), lambda: applied(Net(9)), r"closure\.module\.hidden: 8 -> 9"),
        (
            lambda: applied(Net()),
            lambda: applied(Net(8, nn.tanh)),
            r"closure\.module\.activation: .*relu.*->.*tanh",
        ),
        (
            lambda: functools.partial(power, exponent=2),
            lambda: functools.partial(power, exponent=3),
            r"keywords\.exponent: 2 -> 3",
        ),
        (lambda: Scaled(1).__call__, lambda: Scaled(2).__call__, r"self\.factor: 1 -> 2"),
        (lambda: Scaled(1), lambda: Scaled(2), r"factor: 1 -> 2"),
        (
            lambda: jax.jit(lambda x: 2.0 * x),
            lambda: jax.jit(lambda x: 3.0 * x),
            r"wrapped\.constants\[0\]: 2\.0 -> 3\.0",
        ),
        (lambda: np.arange(3), lambda: np.arange(1, 4), r"int64\[3\] \w{16}' -> 'int64\[3\] \w{16}'"),
        (lambda: jnp.zeros(3), lambda: jnp.zeros((3, 1)), r"float32\[3\]"),
        (
            lambda: jax.random.key(0),
            lambda: jax.random.key(1),
            r"key<threefry2x32> \[0, 0\]' -> 'key<threefry2x32> \[0, 1\]'",
        ),
        (lambda: fc.cohorts.uniform(10, 2), lambda: fc.cohorts.uniform(10, 3), r"size: 2 -> 3"),
        (lambda: {"a": [1, 2]}, lambda: {"a": [1, 2, 3]}, r"a\[2\]: \(absent\) -> 3"),
        (lambda: {"a": 1}, lambda: {"a": True}, r"a: 1 -> True"),
        (lambda: {"a": float("nan")}, lambda: {"a": 1.0}, r"a: 'nan' -> 1\.0"),
        (lambda: simulator(lr=0.1).round, lambda: simulator(lr=0.3).round, r"algorithm\..*lr: 0\.1 -> 0\.3"),
    ],
)
def test_a_setting_that_changed_is_named(one, other, said):
    assert difference(describe(one()), describe(one())) == []
    changed = difference(describe(one()), describe(other()))
    assert any(re.search(said, line) for line in changed), changed
    json.dumps(describe(one()), allow_nan=False)


def test_functions_with_another_constant_or_another_call_differ():
    assert difference(describe(lambda x: x * 2.0), describe(lambda x: x * 3.0)) == [
        "constants[0]: 2.0 -> 3.0"
    ]
    [line] = difference(describe(lambda x: jnp.sin(x)), describe(lambda x: jnp.cos(x)))
    assert line.startswith("code: ")


def test_comments_and_docstrings_are_no_change():
    def compiled(source):
        scope = {"__name__": "somewhere"}
        exec(source, scope)
        return describe(scope["f"])

    plain = compiled("def f(x):\n    return 2 * x\n")
    assert plain == compiled('# new\n\ndef f(x):\n    """Twice x."""\n    return 2 * x  # doubled\n')
    assert plain != compiled("def f(x):\n    return 3 * x\n")


def test_plain_globals_of_a_function_count(monkeypatch):
    before = describe(mentions_a_global)
    monkeypatch.setattr(sys.modules[__name__], "RATE", 0.25)
    assert difference(before, describe(mentions_a_global)) == ["globals.RATE: 0.5 -> 0.25"]


def test_running_a_function_does_not_change_it():
    before = describe(power)
    for i in range(100):
        power(i)
    assert describe(power) == before


def test_cycles_end():
    loop = [1]
    loop.append(loop)
    assert describe(loop)["[1]"] == "the same as the whole"
    assert "globals.recursive" in describe(recursive)
    deep = current = []
    for _ in range(200):
        current.append([])
        current = current[0]
    assert any("too deep" in str(value) for value in describe(deep).values())


def test_only_code_is_left_out_for_another_python():
    described = describe({"f": lambda x: power(x) * 2.0, "lr": 0.1})
    kept = without_code(described)
    assert (
        kept["lr"] == 0.1 and "f" in kept and not any("code" in name or "constants" in name for name in kept)
    )


def whole():
    """All that `fit` describes, of the small run."""
    sim = simulator()
    return {
        "round": sim.round,
        "cohorts": cohorts(),
        "settings": sim.settings,
        "net": applied(Net()),
        "sgd": schedule(7),
        "f": power,
    }


def test_two_processes_agree():
    script = (
        "import json; from fedjax_core.run.config import describe; from tests.run import test_config as t; "
        "print(json.dumps(describe(t.whole())))"
    )
    found = []
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "PYTHONHASHSEED": seed,
        }
        out = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        found.append(json.loads(out.splitlines()[-1]))
    assert difference(*found) == []
    assert len(found[0]) > 50 and "0x" not in json.dumps(found[0])


def test_versions_name_what_last_bits_depend_on():
    assert {"python", "jax", "jaxlib", "numpy", "fedjax-core", "fedjax-core source", "devices"} <= set(
        versions()
    )
