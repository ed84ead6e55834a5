"""What single clients' courses come to in closed form: where a method's own term is all that moves the model,
or bends its course by a known amount."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import algorithms as of

LR, T = 0.1, 3
SGD = optax.sgd(LR)


def course(algorithm, clients, rounds, steps=T):
    """The model after each round of all clients, in float64."""
    loops = fc.Loops(fc.compose(algorithm), clients, batch_size=1, epochs=steps)
    state, models = loops.init(jax.random.key(0)), []
    for _ in range(rounds):
        state, _ = loops.run(state, range(len(clients)))
        models.append(jax.tree.map(lambda x: np.asarray(x, np.float64), state.params))
    return models


def bowl(start, steepness=1.0):
    """The loss a |w - x|^2 / 2 of each example, over all leaves of w."""

    def loss(w, batch, key):
        away = [
            jax.vmap(jnp.subtract, (None, 0))(leaf, jnp.tile(batch["x"][:, None], (1, leaf.size)))
            for leaf in jax.tree.leaves(w)
        ]
        return 0.5 * steepness * sum(jnp.square(one).sum(1) for one in away)

    return fc.Task(lambda key: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), start), loss)


def at(*targets):
    """Clients of one example each."""
    return fc.Clients.from_list([{"x": np.full(1, x, np.float32)} for x in targets])


@pytest.mark.proves(
    "fednova", by="closed form: its fixed point, which unequal numbers of steps do not draw away"
)
def test_fednova_removes_the_inconsistency_of_unequal_steps():
    """Clients of 2, 1 and 3 examples alike take 4, 2 and 6 steps: FedAvg weighs them by their steps once more."""
    means, sizes, lr = np.array([2.0, 5.0, 1.0]), np.array([2, 1, 3]), 0.01
    clients = fc.Clients.from_list(
        [{"x": np.full(n, m, np.float32)} for m, n in zip(means, sizes, strict=True)]
    )
    task, gone = bowl([0.5]), 1 - (1 - lr) ** (2 * sizes)
    ends = {}
    for name, algorithm in (("fednova", of.fednova(task, lr)), ("fedavg", of.fedavg(task, optax.sgd(lr)))):
        sim = fc.Simulator(fc.compose(algorithm), clients, batch_size=1, epochs=2, lanes=1)
        state, _ = sim.run_many(sim.init(jax.random.key(0)), [[0, 1, 2]] * 500)
        ends[name] = float(state.params[0])
    optimum = np.average(means, weights=sizes)
    assert ends["fednova"] == pytest.approx(np.average(means, weights=sizes * gone / (2 * sizes)), abs=1e-5)
    assert ends["fedavg"] == pytest.approx(np.average(means, weights=sizes * gone), abs=1e-5)
    assert abs(ends["fednova"] - optimum) < 0.05 * abs(ends["fedavg"] - optimum)


@pytest.mark.proves("fedsam", by="closed form: the radius on a bowl")
def test_fedsam_nears_the_bottom_of_a_bowl_by_its_radius():
    """r <- (1 - lr a) r - lr a rho, while that is above zero."""
    a, rho, radius = 2.0, 0.3, 5.0
    for model in course(of.fedsam(bowl([3.0, 4.0], a), rho, SGD), at(0.0), rounds=2):
        for _ in range(T):
            radius = (1 - LR * a) * radius - LR * a * rho
        assert model == pytest.approx(radius * np.array([0.6, 0.8]), abs=1e-5)


@pytest.mark.proves("fedlesam", by="closed form: local steps towards a moved optimum, by either norm")
@pytest.mark.parametrize("norm", ["global", "sum"])
def test_fedlesam_goes_towards_an_optimum_moved_by_its_perturbation(norm):
    """The first round is FedAvg; then b - d in the place of b, where d = rho (w_before - w) / |w_before - w|."""
    start, rho, target = {"u": np.array([1.0, -2.0]), "v": np.array([4.0])}, 0.3, 0.5
    task = bowl(start)
    first, second = course(of.fedlesam(task, rho, SGD, norm=norm), at(target), rounds=2)
    for name, w in start.items():
        assert first[name] == pytest.approx(target + 0.9**T * (w - target), abs=1e-5)
    way = {name: start[name] - first[name] for name in start}
    lengths = np.array([np.linalg.norm(x) for x in way.values()])
    size = lengths.sum() if norm == "sum" else np.linalg.norm(lengths)
    for name, w in first.items():
        moved = target - rho * way[name] / size
        assert second[name] == pytest.approx(moved + 0.9**T * (w - moved), abs=1e-5)


@pytest.mark.proves("fednar", by="closed form: without a gradient a step is of the bound")
def test_fednar_without_a_gradient_moves_by_its_bound():
    flat = fc.Task(lambda key: jnp.array([30.0, 40.0]), lambda w, batch, key: 0 * batch["x"] * w.sum())
    models = course(of.fednar(flat, 0.5, 1.5, SGD), at(0.0), rounds=2)
    for r, model in enumerate(models):
        assert model == pytest.approx((50 - LR * 1.5 * T * (r + 1)) * np.array([0.6, 0.8]), abs=1e-4)


@pytest.mark.proves(
    "diloco", by="closed form: of equal changes the outer steps become 0.7 / (1 - 0.9) of one"
)
def test_diloco_goes_seven_times_a_change_that_stays_the_same():
    slope = fc.Task(lambda key: jnp.zeros(1), lambda w, batch, key: batch["x"] * w[0])
    models = [float(model[0]) for model in course(of.diloco(slope, SGD), at(1.0, 3.0), rounds=120, steps=1)]
    assert models[-1] - models[-2] == pytest.approx(-7 * LR * 2.0, rel=1e-4)
    assert models[0] == pytest.approx(-0.7 * 1.9 * LR * 2.0, rel=1e-5)  # Nesterov's first


@pytest.mark.proves(
    "fedadamw", by="identity: AdamW on one machine, whose first moment begins anew in each round"
)
def test_fedadamw_of_clients_alike_is_adamw_with_its_second_moment():
    """A leaf of one number has its whole second moment sent; rounds are of one step."""
    start, target, b2, decay = {"u": np.array([1.0]), "v": np.array([-3.0])}, 0.5, 0.999, 0.1
    models = course(of.fedadamw(bowl(start), LR, 0.0, decay), at(*[target] * 3), rounds=4, steps=1)
    w, v = np.array([1.0, -3.0]), np.zeros(2)
    for t, model in enumerate(models, 1):
        g = w - target
        v = b2 * v + (1 - b2) * g**2
        w = w - LR * (g / (np.sqrt(v / (1 - b2**t)) + 1e-8) + decay * w)
        assert [model["u"][0], model["v"][0]] == pytest.approx(w, abs=1e-5)


def test_a_run_that_goes_on_without_a_client_from_before_it_took_part_is_one_that_never_had_it():
    """To the last bit, with draws at clients and server, since each has an address."""
    draw = np.random.default_rng(0)
    sizes = {"a": 4, "b": 7, "c": 5, "d": 6}
    data = {
        name: {"x": draw.normal(size=(n, 3)).astype(np.float32), "y": draw.normal(size=n).astype(np.float32)}
        for name, n in sizes.items()
    }
    task, coded = fc.models.linear(features=3), fc.uplink.feedback(fc.uplink.quantize(bits=4))

    def simulator(names):
        clients = fc.Clients.from_list([data[name] for name in names], ids=list(names))
        sim = fc.Simulator(
            fc.compose(of.fedavg(task, SGD), uplink=coded), clients, batch_size=2, epochs=1, lanes=2
        )
        return sim, sim.init(jax.random.key(5))

    whole, state = simulator("abcd")
    for cohort in ([0, 1], [2, 0]):
        state, _ = whole.run(state, cohort)
    before = state
    for _ in range(2):
        state, _ = whole.run(state, [0, 1, 2, 3])
    for _ in range(2):  # forgets d
        before, _ = whole.run(before, [0, 1, 2])
    never, expected = simulator("abc")
    for cohort in ([0, 1], [2, 0], [0, 1, 2], [0, 1, 2]):
        expected, _ = never.run(expected, cohort)
    for got, wanted, other in zip(
        *map(jax.tree.leaves, (before.params, expected.params, state.params)), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)
        assert not np.array_equal(got, other)
