"""Convolutions and pooling written anew are the same sums: every form against XLA's own, and whole networks'
gradients in a loop."""

import logging
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fedjax_core.xla import convolutions, timing, tuning_cache
from fedjax_core.xla.convolutions import Convolution
from fedjax_core.xla.rewrite import rewrite

NHWC, NCHW = ("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW")
GEOMETRIES = {
    "same": {"window_strides": (1, 1), "padding": "SAME"},
    "valid": {"window_strides": (1, 1), "padding": "VALID"},
    "stride": {"window_strides": (2, 3), "padding": "SAME"},
    "uneven": {"window_strides": (2, 1), "padding": ((0, 2), (1, 0))},
    "dilated": {"window_strides": (1, 2), "padding": "SAME", "rhs_dilation": (2, 1)},
    "transposed": {"window_strides": (1, 1), "padding": ((1, 2), (2, 1)), "lhs_dilation": (2, 2)},
    "cropped": {"window_strides": (1, 1), "padding": ((-1, 1), (0, -1))},
}


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch):
    monkeypatch.setattr(convolutions, "WORTH_MEASURING", np.inf)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def close(got, expected, bound=1e-5):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        np.testing.assert_allclose(x, y, rtol=bound, atol=bound * max(1.0, float(jnp.abs(y).max(initial=0))))


def equations(closed):
    return [eqn for eqn in closed.eqns if eqn.primitive.name == "conv_general_dilated"]


def names(function, *args):
    """The primitives that a function comes to, inner ones too."""
    text = str(jax.make_jaxpr(function)(*args))
    return {
        name for name in ("conv_general_dilated", "select_and_scatter_add", "dot_general") if name in text
    }


@pytest.mark.parametrize(("geometry", "layout"), [*((name, NHWC) for name in GEOMETRIES), ("stride", NCHW)])
def test_every_form_of_a_convolution_and_of_its_gradients(geometry, layout):
    x, k = normal(0, 2, 7, 6, 3), normal(1, 3, 2, 3, 4)
    if layout == NCHW:
        x, k = x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1)
    forward = partial(lax.conv_general_dilated, **GEOMETRIES[geometry], dimension_numbers=layout)
    gradients = jax.make_jaxpr(lambda x, k: jax.grad(lambda x, k: forward(x, k).sum(), (0, 1))(x, k))(x, k)
    found = equations(gradients)
    assert len(found) == 3
    for eqn in found:
        c = Convolution.of(eqn)
        x, k = (normal(2, *v.aval.shape) for v in eqn.invars)
        # Padded by hand: XLA's own convolution is wrong where the padding is negative.
        padded = c._padded(x, c.axes[0][2:])
        ones = (1,) * len(c.stride)
        by_hand = c._replace(x=padded.shape, padding=((0, 0),) * len(ones), dilation=ones)
        forms = {*c.rules(1), *c.rules(2)}

        @jax.jit
        def one(x, k, padded, by_hand=by_hand, forms=forms, c=c):
            return by_hand.by("plain", padded, k), {rule: c.by(rule, x, k) for rule in forms}

        expected, got = one(x, k, padded)
        many = jax.jit(jax.vmap(lambda x, k, forms=forms, c=c: {rule: c.by(rule, x, k) for rule in forms}))
        close(got, dict.fromkeys(forms, expected))
        close(
            many(jnp.stack([x, 2 * x]), jnp.stack([k, k])),
            dict.fromkeys(forms, jnp.stack([expected, 2 * expected])),
        )


def test_which_forms_apply(monkeypatch):
    def found(*shapes, **settings):
        forward = partial(
            lax.conv_general_dilated, padding=((1, 1), (1, 1)), dimension_numbers=NHWC, **settings
        )
        (eqn,) = equations(jax.make_jaxpr(forward)(*(jnp.zeros(shape) for shape in shapes)))
        return Convolution.of(eqn)

    one = found((2, 8, 8, 3), (3, 3, 3, 4), window_strides=(1, 1))
    assert one.multiplications == 2 * 64 * 9 * 3 * 4
    assert one.rules(1) == ["ordered", "whole", "rows"]
    assert one.rules(2) == ["whole", "ordered, lane by lane", "rows, lane by lane"]
    monkeypatch.setattr(convolutions, "WORTH_MEASURING", 0)
    assert one.rules(64) == ["ordered, lane by lane", "rows, lane by lane", "whole"]
    assert found((2, 8, 8, 3), (1, 1, 3, 4), window_strides=(1, 1), lhs_dilation=(2, 2)).rules(1) == [
        "ordered",
        "whole",
    ]
    by_channel = found((2, 8, 8, 4), (3, 3, 1, 4), window_strides=(1, 1), feature_group_count=4)
    assert by_channel.rules(1) == ["ordered"]
    assert by_channel.rules(64) == ["ordered, lane by lane"]


def test_a_convolution_in_groups_and_its_gradients():
    def step(k, x):
        def loss(k, x):
            y = lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=NHWC, feature_group_count=2)
            return jnp.sum(jnp.sin(y))

        return jax.grad(loss, (0, 1))(k, x)

    k, x = normal(0, 3, 3, 2, 6), normal(1, 2, 5, 5, 4)
    close(rewrite(step, lanes=1)(k, x), step(k, x))
    two = jnp.stack([k, 2 * k]), jnp.stack([x, x])
    close(jax.vmap(rewrite(step, lanes=2))(*two), jax.vmap(step)(*two))


@pytest.mark.parametrize(
    ("shape", "window", "padding"),
    [
        ((2, 4, 6, 3), (1, 2, 2, 1), "VALID"),
        ((2, 5, 7, 3), (1, 2, 3, 1), "VALID"),
        ((2, 5, 7, 3), (1, 3, 2, 1), "SAME"),
        ((6, 5), (2, 1), "SAME"),
    ],
)
def test_the_gradient_of_a_pool_goes_to_the_first_of_equals(shape, window, padding):
    x = jnp.round(normal(0, *shape))  # many are equal

    def step(x):
        return jax.grad(
            lambda x: jnp.sum(jnp.sin(1 + lax.reduce_window(x, -jnp.inf, lax.max, window, window, padding)))
        )(x)

    new = rewrite(step, lanes=1)
    assert names(step, x) == {"select_and_scatter_add"} and names(new, x) == set()
    assert np.array_equal(new(x), step(x))


def test_a_pool_of_windows_that_overlap_is_left_alone():
    def step(x):
        return jax.grad(lambda x: jnp.sum(nn.max_pool(x, (3, 3), strides=(2, 2))))(x)

    x = normal(0, 1, 7, 7, 1)
    assert names(rewrite(step, lanes=1), x) == {"select_and_scatter_add"}


def test_a_step_with_nothing_to_write_anew_is_called_itself():
    calls = []

    def step(carry, batch):
        calls.append(type(carry["w"]))
        return {"w": carry["w"] @ batch}, None

    carry, batch = {"w": normal(0, 3, 3)}, normal(1, 3, 3)
    new, nothing = rewrite(step, lanes=4)(carry, batch)
    assert nothing is None and np.array_equal(new["w"], carry["w"] @ batch)
    assert issubclass(calls[-1], jax.Array) and not issubclass(calls[-1], jax.core.Tracer)


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_large_product_is_made_the_way_it_is_wanted(lanes, monkeypatch):
    monkeypatch.setattr("fedjax_core.xla.rewrite._LARGE_PRODUCT", 12)

    def step(w, x):
        return jax.grad(lambda w: jnp.sum(jnp.sin(x @ w)))(w)

    w, x = normal(0, 4, 3), normal(1, 5, 4)
    new = rewrite(step, lanes)
    assert ("transpose" in str(jax.make_jaxpr(new)(w, x))) == (lanes > 1)
    close(new(w, x), step(w, x))


class Linen(nn.Module):
    """Convolutions of every kind that networks have, with pooling, normalisation, dropout, a checkpoint and
    jit."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.GroupNorm(num_groups=2)(nn.Conv(4, (3, 3), padding="VALID")(x))
        x = nn.max_pool(nn.tanh(x), (2, 2), strides=(2, 2))
        x = nn.remat(nn.Conv)(6, (3, 3), strides=(2, 2))(x)
        x = jax.jit(nn.silu)(x) + nn.Conv(6, (1, 1))(x)
        x = nn.Conv(6, (3, 3), feature_group_count=6)(x)
        x = nn.Dropout(0.3, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(x)


class Twin(nnx.Module):
    """The like in nnx."""

    def __init__(self, rngs: nnx.Rngs):
        self.first, self.second = (
            nnx.Conv(1, 4, (3, 3), rngs=rngs),
            nnx.Conv(4, 4, (3, 3), strides=(2, 1), rngs=rngs),
        )
        self.norm, self.dropout, self.last = (
            nnx.GroupNorm(4, 2, rngs=rngs),
            nnx.Dropout(0.3, rngs=rngs),
            nnx.Linear(32, 3, rngs=rngs),
        )

    def __call__(self, x):
        x = self.norm(nnx.tanh(self.second(nnx.max_pool(self.first(x), (2, 2), strides=(2, 2)))))
        return self.last(self.dropout(x.reshape(x.shape[0], -1)))


@pytest.fixture(params=["linen", "nnx"], scope="module")
def network(request):
    """(a step of SGD, its params)."""
    if request.param == "linen":
        module = Linen()
        params = jax.jit(partial(module.init, train=False))(jax.random.key(0), jnp.zeros((1, 9, 8, 1)))

        def logits(params, x, key):
            return module.apply(params, x, train=True, rngs={"dropout": key})
    else:
        graph, params, rest = nnx.split(Twin(nnx.Rngs(0)), nnx.Param, ...)

        def logits(params, x, key):
            model = nnx.merge(graph, params, jax.tree.map(lambda leaf: leaf, rest))
            nnx.reseed(model, policy="match_shape", dropout=key)
            return model(x)

    def step(params, batch, key):
        def loss(params):
            return -jnp.mean(
                jnp.take_along_axis(
                    jax.nn.log_softmax(logits(params, batch["x"], key)), batch["y"][:, None], 1
                )
            )

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), {"loss": value}

    return step, params


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_network_learns_the_same_in_a_loop(network, lanes):
    step, params = network
    params = jax.tree.map(lambda p: jnp.stack([p] * lanes), params)
    batch = {"x": normal(0, lanes, 2, 9, 8, 1), "y": jnp.zeros((lanes, 2), jnp.int32)}
    keys = jax.random.split(jax.random.key(0), lanes)

    @partial(jax.jit, static_argnums=0)
    def steps(step, params):
        return lax.fori_loop(0, 3, lambda _, params: jax.vmap(step)(params, batch, keys)[0], params)

    close(steps(rewrite(step, lanes), params), steps(step, params))


def test_loops_and_branches_inside_a_step():
    def step(k, x, many):
        def layer(x, _):
            return jnp.tanh(lax.conv(x, k, (1, 1), "SAME")), jnp.sum(x)

        def loss(k):
            def deep(x):
                return lax.scan(lambda x, _: (jnp.tanh(lax.conv(x, k, (1, 1), "SAME")), None), x, None, 2)[0]

            return jnp.sum(lax.cond(many, deep, lambda x: lax.conv(x, k, (1, 1), "SAME"), x))

        after = lax.while_loop(lambda x: jnp.sum(x) > 1e9, lambda x: layer(x, None)[0], x)
        return jax.grad(loss)(k), lax.scan(layer, after, None, 2)

    k, x = normal(0, 2, 2, 3, 3), normal(1, 1, 2, 4, 4)
    for many in (True, False):
        close(rewrite(step, lanes=1)(k, x, jnp.array(many)), step(k, x, jnp.array(many)))


def test_a_derivative_of_ones_own_is_kept():
    @jax.custom_vjp
    def layer(k, x):
        return lax.conv(x, k, (1, 1), "SAME")

    layer.defvjp(
        lambda k, x: (layer(k, x), (k, x)),
        lambda kept, g: (7 * kept[0], lax.conv(g, kept[0], (1, 1), "SAME")),
    )

    def step(k, x):
        return layer(k, x), jax.grad(lambda k, x: jnp.sum(layer(k, jnp.tanh(layer(k, x)))), (0, 1))(k, x)

    k, x = normal(0, 2, 2, 3, 3), normal(1, 1, 2, 4, 4)
    close(rewrite(step, lanes=1)(k, x), step(k, x))


def test_one_is_measured_while_tracing_and_remembered(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("FEDJAX_CORE_CACHE", str(tmp_path))
    monkeypatch.setattr(convolutions, "WORTH_MEASURING", 0)
    monkeypatch.setattr(timing, "_here", {})
    monkeypatch.setattr(tuning_cache, "_entries", {})
    new, (k, x) = (
        rewrite(partial(lax.conv, window_strides=(1, 1), padding="SAME"), lanes=1),
        (normal(0, 2, 1, 3, 3), normal(1, 1, 1, 6, 6)),
    )
    with caplog.at_level(logging.INFO, "fedjax_core"):
        got = jax.jit(jax.vmap(new))(x[None], k[None])[0]
    close(got, lax.conv(x, k, (1, 1), "SAME"))
    assert any(f"lanes 1, cores 1: {rule} (ordered" in caplog.text for rule in ("ordered", "whole", "rows"))
    monkeypatch.setattr(timing, "_here", {})
    monkeypatch.setattr(timing, "_times", lambda *_: pytest.fail("measured again"))
    new(x, k)
    (question,) = timing._here
    assert set(tuning_cache.lookup(question)["seconds"]) == {"ordered", "whole", "rows"}


def test_where_nothing_can_be_measured_the_usual_form_is_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDJAX_CORE_CACHE", str(tmp_path))
    monkeypatch.setattr(convolutions, "WORTH_MEASURING", 0)
    monkeypatch.setattr(timing, "_here", {})
    monkeypatch.setattr(tuning_cache, "_entries", {})
    monkeypatch.setattr(timing, "_BUDGET_SECONDS", 0)
    (eqn,) = equations(
        jax.make_jaxpr(lambda x, k: lax.conv(x, k, (1, 1), "SAME"))(
            normal(0, 1, 1, 6, 6), normal(1, 2, 1, 3, 3)
        )
    )
    c = Convolution.of(eqn)
    assert timing.choose([c, c], 1) == {c: "ordered"}
    assert not list(tmp_path.rglob("*.json"))
