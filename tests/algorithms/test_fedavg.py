import optax
import pytest

from fedjax_core import algorithms
from fedjax_core.algorithms import fedopt
from tests.quadratic import MEANS, POOLED, SIZES, START, TASK, descend, simulate


def test_one_full_batch_step_is_gradient_descent_on_the_pooled_loss():
    state = simulate(algorithms.fedavg(TASK, optax.sgd(0.1)))
    assert float(state.params[0]) == pytest.approx(START - 0.1 * (START - POOLED), abs=1e-6)


def test_several_steps_are_averaged_by_examples_or_alike():
    ends = descend(START, MEANS, 0.1, steps=4)
    by_examples = simulate(algorithms.fedavg(TASK, optax.sgd(0.1)), epochs=4)
    alike = simulate(algorithms.fedavg(TASK, optax.sgd(0.1), weighting=algorithms.uniform), epochs=4)
    assert float(by_examples.params[0]) == pytest.approx((ends * SIZES).sum() / SIZES.sum(), abs=1e-6)
    assert float(alike.params[0]) == pytest.approx(ends.mean(), abs=1e-6)


def test_the_server_optimiser_is_given_the_change_as_a_gradient():
    change = 0.1 * (POOLED - START)
    state = simulate(algorithms.fedavg(TASK, optax.sgd(0.1), server=optax.sgd(0.5)))
    assert float(state.params[0]) == pytest.approx(START + 0.5 * change, abs=1e-6)


@pytest.mark.proves("fedadam, fedyogi, fedadagrad", by="independent implementation: the paper's equations")
@pytest.mark.parametrize(
    ("rule", "second"),
    [
        (fedopt.adam(0.3, b1=0.9, b2=0.99, tau=0.1), lambda v, d: 0.99 * v + 0.01 * d * d),
        (
            fedopt.yogi(0.3, b1=0.9, b2=0.99, tau=0.1),
            lambda v, d: v - 0.01 * d * d * (1 if v > d * d else -1),
        ),
        (fedopt.adagrad(0.3, b1=0.9, tau=0.1), lambda v, d: v + d * d),
    ],
)
def test_adaptive_server_rules_follow_their_equations(rule, second):
    w, m, v = START, 0.0, 0.0
    for _ in range(3):
        d = 0.1 * (POOLED - w)
        m, v = 0.9 * m + 0.1 * d, second(v, d)
        w += 0.3 * m / (v**0.5 + 0.1)
    state = simulate(algorithms.fedavg(TASK, optax.sgd(0.1), server=rule), rounds=3)
    assert float(state.params[0]) == pytest.approx(w, abs=1e-6)


@pytest.mark.proves("fedprox", by="closed form: where local steps end on a quadratic")
def test_fedprox_ends_between_start_and_the_local_optimum():
    """With many steps the proximal problem is solved: argmin (w - mean)^2 / 2 + mu (w - start)^2 / 2."""
    state = simulate(algorithms.fedprox(TASK, mu=1.0, local=optax.sgd(0.2)), epochs=60, cohort=[1])
    assert float(state.params[0]) == pytest.approx((MEANS[1] + START) / 2, abs=1e-5)


@pytest.mark.parametrize("name", ["local", "server"])
def test_what_is_no_optimiser_is_refused(name):
    given = {"local": optax.sgd(0.1), name: 0.1}
    with pytest.raises(
        TypeError, match=rf"{name}= must be an optax optimiser .* got float 0.1.*{name}=optax.sgd\(0.1\)"
    ):
        algorithms.fedavg(TASK, **given)


def test_a_negative_pull_is_refused():
    with pytest.raises(ValueError, match="mu must be at least 0, got -1"):
        algorithms.fedprox(TASK, mu=-1, local=optax.sgd(0.1))
