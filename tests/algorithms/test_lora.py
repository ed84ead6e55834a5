"""Identities of low-rank factors, to 1e-6, against what each client's own factors come to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import fedjax_core as fc
from fedjax_core.algorithms import fedavg, fedex, flora, lora_fair

SIZES, SGD, SCALE = (3, 5, 2), optax.sgd(0.3), 1.5
INNER = fc.models.mlp(features=4, hidden=(6,), classes=3)
WHOLE = INNER.init(jax.random.key(7))


def clients(alike=False):
    def one(seed, n):
        rng = np.random.default_rng(seed)
        return {"x": rng.normal(size=(n, 4)).astype(np.float32), "y": rng.integers(0, 3, n).astype(np.int32)}

    return fc.Clients.from_list([one(0, 4)] * 3 if alike else [one(i, n) for i, n in enumerate(SIZES)])


def task():
    return fc.models.lora(INNER, WHOLE, "0/w", "1/w", rank=2, alpha=2 * SCALE)


def run(algorithm, rounds=1, data=None):
    """(states, what clients reported in the last round) of a federation of three; a is the same for all, and
    b is no longer zero."""
    loops = fc.Loops(fc.compose(algorithm), clients() if data is None else data, batch_size=5, epochs=2)
    begun = algorithm.task.init(jax.random.key(1))
    if isinstance(begun, fc.lora.LowRank) and jax.tree.leaves(begun.b):
        begun = begun._replace(
            b=jax.tree.map(
                lambda b: 0.3 * jnp.cos(jnp.arange(b.size, dtype=b.dtype)).reshape(b.shape), begun.b
            )
        )
    states, visits = [loops.init(jax.random.key(0), begun)], []
    for _ in range(rounds):
        visits.clear()
        states.append(loops.run(states[-1], [0, 1, 2], each=visits.append)[0])
    return states, visits


def expected(before, visits, layer):
    """(each client's a, b, the mean product) in float64; means by examples."""
    a = [np.asarray(before.params.a[layer]["w"] + v.update.a[layer]["w"], np.float64) for v in visits]
    b = [np.asarray(before.params.b[layer]["w"] + v.update.b[layer]["w"], np.float64) for v in visits]
    p = np.array([float(v.weight) for v in visits])
    p = p / p.sum()
    means = [sum(s * x for s, x in zip(p, xs, strict=True)) for xs in (a, b)]
    return *means, sum(s * x @ y for s, x, y in zip(p, a, b, strict=True)), a, b, p


@pytest.mark.proves(
    "fedex", by="identity: W + s mean(a_i b_i), to 1e-6; nothing is left over of clients alike"
)
def test_fedex_loses_nothing():
    (before, after), visits = run(fedex(task(), SGD))
    for layer in (0, 1):
        a, _, product, *_ = expected(before, visits, layer)
        w = np.asarray(before.params.base[layer]["w"], np.float64)
        np.testing.assert_allclose(after.params.weights[layer]["w"], w + SCALE * product, atol=1e-6)
        np.testing.assert_allclose(after.params.a[layer]["w"], a, atol=1e-6)
        left = np.asarray(after.params.base[layer]["w"], np.float64) - w
        assert np.abs(left).max() > 1e-4 and np.linalg.matrix_rank(left, tol=1e-5) <= min(4, (3 + 1) * 2)
    (before, after), _ = run(fedex(task(), SGD), data=clients(alike=True))
    np.testing.assert_allclose(after.params.base[0]["w"], before.params.base[0]["w"], atol=1e-6)


@pytest.mark.proves("flora", by="identity: the stack's product is the mean product, to 1e-6")
def test_flora_stacks_products_and_begins_anew():
    states, visits = run(flora(task(), SGD), rounds=2)
    for before, after in [states[1:]]:
        for layer in (0, 1):
            _, _, product, a, b, p = expected(before, visits, layer)
            stack = np.hstack(a) @ np.vstack([s * x for s, x in zip(p, b, strict=True)])
            np.testing.assert_allclose(stack, product, atol=1e-12)
            w = np.asarray(before.params.base[layer]["w"], np.float64) + SCALE * stack
            np.testing.assert_allclose(after.params.weights[layer]["w"], w, atol=1e-6)
        assert not np.any(after.params.b[0]["w"]) and not np.allclose(
            after.params.a[0]["w"], before.params.a[0]["w"]
        )


@pytest.mark.proves(
    "lora_fair", by="closed form: the ridge solution, never further from the mean product than without"
)
def test_fair_is_the_ridge_solution():
    (before, after), visits = run(lora_fair(task(), SGD, ridge=0.05))
    for layer in (0, 1):
        a, b, product, *_ = expected(before, visits, layer)
        d = np.linalg.solve(a.T @ a + 0.05 * np.eye(2), a.T @ (product - a @ b))
        np.testing.assert_allclose(after.params.b[layer]["w"], b + d, atol=1e-6)
        now = np.asarray(after.params.a[layer]["w"] @ after.params.b[layer]["w"], np.float64)
        assert np.linalg.norm(product - now) < np.linalg.norm(product - a @ b)
        np.testing.assert_array_equal(after.params.base[layer]["w"], before.params.base[layer]["w"])


@pytest.mark.proves("fedit", by="identity: the mean of each factor, and not of the product, to 1e-6")
def test_fedit_averages_each_factor():
    made = task()
    (before, after), visits = run(
        fedavg(fc.models.train_only(made, made.init(jax.random.key(1)), "a", "b"), SGD), rounds=1
    )
    a, b, product, *_ = expected(before, visits, 0)
    np.testing.assert_allclose(after.params.a[0]["w"], a, atol=1e-6)
    np.testing.assert_allclose(after.params.b[0]["w"], b, atol=1e-6)
    assert np.abs(product - a @ b).max() > 1e-5 and after.params.base[0]["w"] is None


@pytest.mark.proves("ffa-lora", by="identity: with a frozen, the mean of b gives the mean product, to 1e-6")
def test_ffa_is_exact_as_a_does_not_move():
    made = task()
    begun = made.init(jax.random.key(1))
    (before, after), visits = run(fedavg(fc.models.train_only(made, begun, "b"), SGD))
    a, p = np.asarray(begun.a[0]["w"], np.float64), np.array(SIZES) / sum(SIZES)
    b = [np.asarray(before.params.b[0]["w"] + v.update.b[0]["w"], np.float64) for v in visits]
    np.testing.assert_allclose(
        a @ np.asarray(after.params.b[0]["w"]), sum(s * a @ x for s, x in zip(p, b, strict=True)), atol=1e-6
    )
    assert after.params.a[0]["w"] is None


def test_the_model_begins_as_the_pretrained_one_and_adapts_what_is_named():
    made = task()
    begun, batch = made.init(jax.random.key(3)), {"x": jnp.asarray(clients()[1]["x"])}
    np.testing.assert_array_equal(made.predict(begun, batch), INNER.predict(WHOLE, batch))
    assert fc.tree.names(begun.a) == ["0/w", "1/w"]
    half = fc.models.lora(INNER, WHOLE, "1/w", rank=4, alpha=6.0, rank_stabilised=True).init(
        jax.random.key(3)
    )
    assert float(half.scale) == 3.0 and half.b[1]["w"].shape == (4, 3)


def test_kernels_of_flax_modules_with_more_axes_are_matrices_to_it():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.relu(nn.Conv(2, (3, 3))(x)).reshape(len(x), -1))

    batch = {"x": np.ones((2, 4, 4, 1), np.float32), "y": np.zeros(2, np.int32)}
    inner = fc.models.from_flax(Network(), batch, loss=lambda outputs, batch: outputs.sum(1))
    made = fc.models.lora(inner, inner.init(jax.random.key(0)), "Conv_0/kernel", rank=1)
    begun = made.init(jax.random.key(1))
    begun = begun._replace(b=jax.tree.map(jnp.ones_like, begun.b))
    kernel = begun.base["Conv_0"]["kernel"] + (begun.a["Conv_0"]["kernel"] @ jnp.ones((1, 2))).reshape(
        3, 3, 1, 2
    )
    np.testing.assert_allclose(begun.weights["Conv_0"]["kernel"], kernel, atol=1e-7)


@pytest.mark.parametrize(
    "build", [fedex, flora, lora_fair, None], ids=["fedex", "flora", "lora_fair", "fedit"]
)
def test_a_head_that_is_trained_itself_is_averaged_beside_the_factors(build):
    made = fc.models.lora(INNER, WHOLE, "0/w", rank=2, alpha=2 * SCALE, full=("1",))
    begun = made.init(jax.random.key(1))
    batch = {"x": jnp.asarray(clients()[1]["x"])}
    np.testing.assert_array_equal(made.predict(begun, batch), INNER.predict(WHOLE, batch))
    assert fc.tree.names(begun.full) == ["1/b", "1/w"] and fc.tree.names(begun.a) == ["0/w"]
    algorithm = (
        fedavg(fc.models.train_only(made, begun, "a", "b", "full"), SGD)
        if build is None
        else build(made, SGD)
    )
    (before, after), visits = run(algorithm)
    shares = np.array(SIZES) / sum(SIZES)
    for name in ("w", "b"):
        mean = sum(s * np.asarray(v.update.full[1][name]) for s, v in zip(shares, visits, strict=True))
        moved = np.asarray(after.params.full[1][name]) - np.asarray(before.params.full[1][name])
        np.testing.assert_allclose(moved, mean, atol=1e-6)
        assert np.abs(mean).max() > 1e-3
    # By hand: the first client's steps on the head, whose features move by the factors.
    data = {name: jnp.asarray(x) for name, x in clients()[0].items()}
    w0, a, b = WHOLE[0]["w"], before.params.a[0]["w"], before.params.b[0]["w"]
    trained = (a, b, WHOLE[1])

    def loss(trained):
        a, b, head = trained
        layers = [{"w": w0 + SCALE * a @ b, "b": WHOLE[0]["b"]}, head]
        return INNER.loss(layers, data, jax.random.key(0)).mean()

    for _ in range(2):
        trained = jax.tree.map(lambda x, g: x - 0.3 * g, trained, jax.grad(loss)(trained))
    np.testing.assert_allclose(visits[0].update.full[1]["w"], trained[2]["w"] - WHOLE[1]["w"], atol=1e-5)


MISTAKES = {
    "there is no leaf under '0/w'": lambda: fc.models.lora(INNER, WHOLE, "0/w", rank=1, full=("0/w",)),
    "rank >= 1": lambda: fc.models.lora(INNER, WHOLE, "0/w", rank=0),
    "adapts matrices, and '0/b' has shape": lambda: fc.models.lora(INNER, WHOLE, "0", rank=1),
    "ridge must be above 0": lambda: lora_fair(task(), SGD, ridge=0.0),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_what_makes_no_sense_is_refused(said):
    with pytest.raises(ValueError, match=said):
        MISTAKES[said]()
