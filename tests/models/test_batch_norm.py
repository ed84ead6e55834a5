"""BatchNorm: its statistics are of the examples and not of padding, and are each client's own, averaged, or
refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import fedjax_core as fc
from fedjax_core import models
from fedjax_core.types import Batch

SIZES, LR, MOMENTUM = (5, 3, 7), 0.1, 0.9
KEY = jax.random.key(0)


class Normalised(nn.Module):
    """A dense layer, BatchNorm, and another dense layer; `encode` is what comes before that."""

    def setup(self):
        self.first, self.norm, self.last = nn.Dense(4), nn.BatchNorm(momentum=MOMENTUM), nn.Dense(3)

    def encode(self, x, train: bool):
        return self.norm(self.first(x), use_running_average=not train)

    def __call__(self, x, train: bool):
        return self.last(nn.relu(self.encode(x, train)))


def losses(outputs, batch):
    return models.cross_entropy(outputs, batch["y"])


def clients():
    rng, made = np.random.default_rng(0), []
    for i, n in enumerate(SIZES):
        made.append(
            {
                "x": rng.normal(i, 1 + i, size=(n, 2)).astype(np.float32),
                "y": rng.integers(0, 3, n).astype(np.int32),
            }
        )
    return fc.Clients.from_list(made)


def task(statistics="personal", **more):
    return models.from_flax(Normalised(), clients().columns, losses, statistics=statistics, **more)


def plain_loop(data, variables, cohorts, personal):
    """Rounds of Flax as its own guide writes them, on batches without padding: (what is shared, what each
    client keeps)."""
    plan, shared, own = fc.data.batches.Plan(2, epochs=2), variables, [variables] * len(data)

    def loss(params, stats, x, y):
        outputs, after = Normalised().apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        return losses(outputs, {"y": y}).mean(), after["batch_stats"]

    for r, cohort in enumerate(cohorts):
        ends = []
        for i in cohort:
            mine = fc.tree.combine(fc.tree.partition(own[i], personal)[0], shared)
            for places in plan.batches(np.array([i]), data.offsets, data.addresses, r)[0]:
                at = places[places >= 0]
                x, y = data.columns["x"][at], data.columns["y"][at]
                grads, stats = jax.grad(loss, has_aux=True)(mine["params"], mine["batch_stats"], x, y)
                mine = {
                    "params": jax.tree.map(lambda p, g: p - LR * g, mine["params"], grads),
                    "batch_stats": stats,
                }
            own[i] = mine
            ends.append(mine)
        weights = np.array([SIZES[i] for i in cohort]) / sum(SIZES[i] for i in cohort)
        shared = jax.tree.map(
            lambda *leaves, w=weights: sum(a * x for a, x in zip(w, leaves, strict=True)), *ends
        )
    return shared, own


COHORTS = ([0, 1, 2], [2, 0], [1, 2])


def trained(algorithm):
    sim = fc.Simulator(fc.compose(algorithm), clients(), batch_size=2, epochs=2, lanes=2)
    state = sim.init(jax.random.key(1))
    begun = jax.tree.map(np.asarray, fc.tree.combine(jax.tree.map(lambda x: x[0], state.clients.own), state.params) if
                         jax.tree.leaves(state.clients.own) else state.params)  # fmt: skip
    for cohort in COHORTS:
        state, _ = sim.run(state, cohort)
    return sim, state, begun


@pytest.mark.proves("silobn", by="independent implementation: rounds in plain Flax")
def test_personal_statistics_are_those_of_plain_flax_without_padding():
    sim, state, begun = trained(fc.algorithms.fedper(task(), optax.sgd(LR), personal=()))
    shared, own = plain_loop(clients(), begun, COHORTS, personal=("batch_stats",))
    close(state.params["params"], shared["params"])
    close(
        state.clients.own["batch_stats"],
        jax.tree.map(lambda *x: np.stack(x), *[one["batch_stats"] for one in own]),
    )
    assert jax.tree.leaves(state.params["batch_stats"]) == []
    for i, loss in enumerate(sim.evaluate(state).clients["loss"]):
        mine = {"params": shared["params"], "batch_stats": own[i]["batch_stats"]}
        x, y = clients()[i]["x"], clients()[i]["y"]
        assert float(loss) == pytest.approx(
            float(losses(Normalised().apply(mine, x, train=False), {"y": y}).mean()), rel=1e-4
        )


@pytest.mark.proves("fedbn", by="independent implementation: rounds in plain Flax")
def test_fedbn_keeps_the_scale_and_bias_of_the_layer_too():
    _, state, begun = trained(fc.algorithms.fedper(task(), optax.sgd(LR), personal=["params/norm"]))
    shared, own = plain_loop(clients(), begun, COHORTS, personal=("batch_stats", "params/norm"))
    for name in ("first", "last"):
        close(state.params["params"].get(name, {}), shared["params"].get(name, {}))
    for name in ("scale", "bias"):
        close(
            state.clients.own["params"]["norm"][name], np.stack([one["params"]["norm"][name] for one in own])
        )
    assert set(fc.tree.names(state.clients.own)) == {f"{kind}" for kind in (
        "batch_stats/norm/mean", "batch_stats/norm/var", "params/norm/bias", "params/norm/scale")}  # fmt: skip
    assert not np.allclose(*(state.clients.own["params"]["norm"]["scale"][i] for i in (0, 2)))


def test_shared_statistics_are_averaged_whatever_the_servers_optimiser():
    _, state, begun = trained(fc.algorithms.fedavg(task("shared"), optax.sgd(LR)))
    shared, _ = plain_loop(clients(), begun, COHORTS, personal=())
    close(state.params, shared)
    sim = fc.Simulator(
        fc.compose(fc.algorithms.fedavg(task("shared"), optax.sgd(LR), optax.sgd(0.5))),
        clients(),
        batch_size=2,
        epochs=2,
    )
    half, _ = sim.run(sim.init(jax.random.key(1)), COHORTS[0])
    whole, _ = plain_loop(clients(), begun, COHORTS[:1], personal=())
    close(half.params["batch_stats"], whole["batch_stats"])
    close(half.params["params"], jax.tree.map(lambda a, b: (a + b) / 2, begun["params"], whole["params"]))


def close(got, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), got, expected)


def test_a_loss_and_its_statistics_do_not_see_padding():
    made = task()
    params, x = made.init(KEY), np.array([[1.0, 2.0], [3.0, -1.0], [0.0, 5.0]], np.float32)
    short = Batch({"x": jnp.asarray(x[:2]), "y": jnp.array([0, 1])}, jnp.ones(2))
    for filler in (x[:1], 100 * x[2:]):
        padded = Batch(
            {"x": jnp.concatenate([x[:2], filler]), "y": jnp.array([0, 1, 2])}, jnp.array([1.0, 1.0, 0.0])
        )
        np.testing.assert_allclose(
            made.mean_loss(params, padded, KEY), made.mean_loss(params, short, KEY), rtol=1e-6
        )
        close(
            made.statistics.update(params, padded, KEY)["batch_stats"],
            made.statistics.update(params, short, KEY)["batch_stats"],
        )
    nobody = Batch(short.columns, jnp.zeros(2))
    assert np.isfinite(made.mean_loss(params, nobody, KEY))


def test_features_are_those_of_the_method():
    made = task("shared", features="encode")
    params, batch = made.init(KEY), Batch({"x": jnp.ones((2, 2)), "y": jnp.array([0, 1])}, jnp.ones(2))
    expected, _ = Normalised().apply(params, batch["x"], train=True, method="encode", mutable=["batch_stats"])
    np.testing.assert_allclose(made.features(params, batch, KEY), expected, rtol=1e-6)


def test_personal_statistics_are_sent_by_no_algorithm():
    for algorithm in (fc.algorithms.fedavg(task(), optax.sgd(LR)), fc.algorithms.scaffold(task(), LR, 3)):
        with pytest.raises(
            ValueError,
            match=r"sends 'batch_stats/norm/mean', which is each client's own .* use fc.algorithms.fedper",
        ):
            fc.compose(algorithm)


class Stateful(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x + self.variable("memory", "last", lambda: jnp.zeros((1, 2))).value)


class Deaf(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))


class Folded(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x.reshape(-1, 1)).reshape(x.shape))


class NnxNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


REFUSED = {
    "not known": (Normalised(), "frozen", "statistics='frozen' is not known.*constants="),
    "none there": (nn.Dense(3), "shared", "Dense keeps none"),
    "other state": (Stateful(), None, "Stateful keeps state beside its parameters"),
    "nnx": (NnxNorm, "personal", "of a linen module"),
    "always training": (Deaf(), "shared", "changes its statistics in evaluation"),
    "rows that are no examples": (Folded(), "shared", "BatchNorm is given 4 rows of a batch of 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_with_the_way_out(name):
    module, statistics, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        models.from_flax(module, clients().columns, losses, statistics=statistics)


def test_statistics_of_a_task_of_ones_own_must_have_their_shapes():
    plain = models.linear(features=2)
    wrong = plain._replace(
        statistics=fc.task.Statistics(("b",), lambda params, batch, key: {"w": None, "b": batch["x"]})
    )
    with pytest.raises(ValueError, match=r"statistics.update of the task must give the leaves 'b'"):
        fc.task.check_task(wrong, {"x": np.ones((3, 2), np.float32), "y": np.ones(3, np.float32)}, 2)


def test_a_method_that_is_not_there_or_gives_no_vectors_is_refused():
    with pytest.raises(ValueError, match="features='look' is no method of Normalised"):
        task(features="look")

    class Images(Normalised):
        def flat(self, x, train: bool):
            return self.encode(x, train)[:, None]

    with pytest.raises(
        ValueError, match=r"features= must give a vector an example, \[B, d\], and gives \[2, 1, 4\]"
    ):
        models.from_flax(Images(), clients().columns, losses, statistics="shared", features="flat")
