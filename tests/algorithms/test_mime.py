import optax
import pytest

from fedjax_core import algorithms
from tests.quadratic import POOLED, SIZES, START, TASK, simulate


def test_two_rounds_with_momentum_worked_by_hand():
    """On quadratics of one steepness g(y) - g(x) + c = y - pooled mean for every client, so all take the same
    steps."""
    w, trace, lr, decay = START, 0.0, 0.1, 0.9
    for _ in range(2):
        control, y = w - POOLED, w
        for _ in range(3):
            y -= lr * ((y - POOLED) + decay * trace)  # the base optimiser with its state held still
        trace = control + decay * trace
        w = y
    state = simulate(algorithms.mime(TASK, base=optax.sgd(lr, momentum=decay)), rounds=2, epochs=3)
    assert float(state.params[0]) == pytest.approx(w, abs=1e-5)


def test_the_first_exchange_brings_the_gradient_over_all_examples():
    state = simulate(algorithms.mime(TASK, base=optax.sgd(0.1)), batch_size=2, epochs=2)
    assert float(state.server.control[0]) == pytest.approx(START - POOLED, abs=1e-6)
    assert SIZES.sum() == 6
