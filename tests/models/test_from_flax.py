"""Flax modules as tasks: linen and nnx agree, dropout obeys the key and the mode, and what cannot be
federated is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from fedjax_core import models
from fedjax_core.types import Batch

KEY, OTHER = jax.random.key(0), jax.random.key(1)
BATCH = Batch(
    {"x": jnp.array([[1.0, -2.0], [0.5, 3.0], [2.0, 2.0]]), "y": jnp.array([0, 1, 2], jnp.int32)}, jnp.ones(3)
)


def losses(outputs, batch):
    return models.cross_entropy(outputs, batch["y"])


class Linen(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.Dense(8)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(3)(x)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic: bool):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=deterministic)(x))


class Nnx(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, rate: float = 0.0):
        self.layers = nnx.List([nnx.Linear(2, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)])
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.scale = nnx.data(jnp.float32(1))  # a plain array is a constant, not state

    def __call__(self, x):
        return self.layers[1](self.dropout(nnx.relu(self.layers[0](x)))) * self.scale


class DroppingNnx(Nnx):
    def __init__(self, rngs: nnx.Rngs):
        super().__init__(rngs, 0.5)


def test_linen_and_nnx_agree():
    linen, other = models.from_flax(Linen(), BATCH, losses), models.from_flax(Nnx, BATCH, losses)
    values = other.init(KEY)
    params = {
        f"Dense_{i}": {name: values[f"layers.{i}.{name}"] for name in ("kernel", "bias")} for i in range(2)
    }
    assert jax.tree.structure(params) == jax.tree.structure(linen.init(KEY))
    np.testing.assert_allclose(linen.loss(params, BATCH, KEY), other.loss(values, BATCH, KEY), rtol=1e-6)
    np.testing.assert_allclose(linen.predict(params, BATCH), other.predict(values, BATCH), rtol=1e-6)


MODULES = {
    "linen": Linen(0.5),
    "deterministic": Deterministic(),
    "nnx": DroppingNnx,
    "made": DroppingNnx(nnx.Rngs(5)),
}


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
def test_dropout_follows_the_key_in_training_and_is_off_in_evaluation(module):
    task = models.from_flax(module, BATCH, losses)
    params = task.init(KEY)
    loss = jax.jit(task.loss)
    assert (loss(params, BATCH, KEY) == loss(params, BATCH, KEY)).all()
    assert (loss(params, BATCH, KEY) != loss(params, BATCH, OTHER)).any()
    evaluated = task.evaluation(params, BATCH)["loss"]
    np.testing.assert_allclose(evaluated, losses(task.predict(params, BATCH), BATCH), rtol=1e-6)
    many = jax.vmap(lambda key: task.loss(params, BATCH, key))(jax.random.split(KEY, 50))
    assert (many.std(0) > 0).all() and not np.allclose(many, evaluated[None, :])


def test_two_dropouts_of_an_nnx_module_draw_apart():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two, self.bias = (
                nnx.Dropout(0.5, rngs=rngs),
                nnx.Dropout(0.5, rngs=rngs),
                nnx.Param(jnp.zeros(())),
            )

        def __call__(self, x):
            return jnp.stack([self.one(x), self.two(x)], 1) + self.bias

    x = Batch({"x": jnp.ones(64)}, jnp.ones(64))
    found = models.from_flax(Two, x, lambda outputs, batch: outputs[:, 0] - outputs[:, 1])
    assert (found.loss(found.init(KEY), x, KEY) != 0).any()


def test_init_is_the_keys_for_a_class_and_the_modules_own_for_a_module():
    fresh = models.from_flax(Nnx, BATCH, losses)
    assert (fresh.init(KEY)["layers.0.kernel"] != fresh.init(OTHER)["layers.0.kernel"]).any()
    module = Nnx(nnx.Rngs(3))
    made = models.from_flax(module, BATCH, losses)
    jax.tree.map(lambda leaf: leaf.delete(), made.init(KEY))  # as donation would
    assert (made.init(OTHER)["layers.0.kernel"] == module.layers[0].kernel[...]).all()
    assert module(BATCH["x"]).shape == (3, 3)  # and tracing has left nothing behind in it


@pytest.mark.parametrize("module", [Linen(0.3), DroppingNnx], ids=["linen", "nnx"])
def test_vmap_over_parameters_inside_a_compiled_loop(module):
    task = models.from_flax(module, BATCH, losses)
    keys = jax.random.split(KEY, 3)
    gradient = jax.grad(task.mean_loss)

    def step(params, key):
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params, BATCH, key))

    def loop(params, keys):
        return jax.lax.scan(lambda p, key: (jax.vmap(step, (0, None))(p, key), None), params, keys)[0]

    params = task.init(KEY)
    looped = jax.jit(loop)(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params), keys)
    for key in keys:
        params = jax.jit(step)(params, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-6), looped, params)


def test_bytes_are_scaled_unless_the_inputs_are_given():
    pixels = {"x": jnp.array([[0, 255]], jnp.uint8), "y": jnp.zeros(1, jnp.int32)}
    task = models.from_flax(nn.Dense(2), pixels, losses)
    params = {"kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]), "bias": jnp.zeros(2)}
    assert task.predict(params, Batch(pixels, jnp.ones(1))).tolist() == [[0.0, 1.0]]
    tokens = models.from_flax(
        nn.Embed(256, 2), pixels, lambda o, b: o.sum((1, 2)), inputs=lambda batch: batch["x"]
    )
    assert tokens.init(KEY)["embedding"].shape == (256, 2)


def test_metrics_come_from_one_evaluation():
    task = models.from_flax(
        Linen(0.5),
        BATCH,
        losses,
        metrics=lambda outputs, batch: {"accuracy": models.accuracy(outputs, batch["y"])},
    )
    found = task.evaluation(task.init(KEY), BATCH)
    assert list(found) == ["loss", "accuracy"] and found["accuracy"].shape == (3,)


class LinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x))


class NnxNorm(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.linear = nnx.BatchNorm(2, rngs=rngs), nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, x):
        return self.linear(self.norm(x))


@pytest.mark.parametrize(
    ("module", "named"), [(LinenNorm(), "batch_stats: BatchNorm_0/mean"), (NnxNorm, "BatchStat: norm/mean")]
)
def test_batch_norm_is_refused_with_the_way_out(module, named):
    with pytest.raises(ValueError, match=rf"{named}.*replace BatchNorm with GroupNorm or LayerNorm"):
        models.from_flax(module, BATCH, losses)


class Named(nn.Module):
    @nn.compact
    def __call__(self, x, mode="eval"):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=mode != "train")(x))


class Always(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=True)(x))


class Attending(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.MultiHeadDotProductAttention(num_heads=1, dropout_rate=0.5, deterministic=True)(x[:, :, None])
        return nn.Dense(3)(x[:, :, 0])


class FlaggedNnx(nnx.Module):
    def __init__(self, rngs):
        self.dropout, self.linear = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, x, keep=True):
        return self.linear(self.dropout(x, deterministic=keep))


class StubbornNnx(FlaggedNnx):
    def __call__(self, x):
        return self.linear(self.dropout(x, deterministic=False))


NEVER = {"another name": Named(), "always off": Always(), "attention": Attending(), "nnx": FlaggedNnx}


@pytest.mark.parametrize("module", NEVER.values(), ids=NEVER.keys())
def test_dropout_that_never_drops_is_refused(module):
    with pytest.raises(
        ValueError, match=r"has dropout .*, and none of it drops in training.*from_flax\(\.\.\., training="
    ):
        models.from_flax(module, BATCH, losses)


@pytest.mark.parametrize(
    ("module", "training", "evaluation"),
    [
        (Named(), {"mode": "train"}, {"mode": "eval"}),
        (FlaggedNnx, {"keep": False}, {"keep": True}),
        (Linen(0.5), None, None),
    ],
    ids=["linen", "nnx", "usual"],
)
def test_the_argument_that_says_so_can_be_named(module, training, evaluation):
    task = models.from_flax(module, BATCH, losses, training=training, evaluation=evaluation)
    params = task.init(KEY)
    assert (task.loss(params, BATCH, KEY) != task.loss(params, BATCH, OTHER)).any()
    np.testing.assert_allclose(
        task.evaluation(params, BATCH)["loss"], losses(task.predict(params, BATCH), BATCH), rtol=1e-6
    )


def test_arguments_that_are_lacking_or_unknown_are_named():
    class Required(nn.Module):
        @nn.compact
        def __call__(self, x, is_train):
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not is_train)(x))

    with pytest.raises(
        ValueError, match=r"Required.__call__ needs 'is_train'.*training=\{'is_train': True\}"
    ):
        models.from_flax(Required(), BATCH, losses)
    models.from_flax(Required(), BATCH, losses, training={"is_train": True}, evaluation={"is_train": False})
    with pytest.raises(ValueError, match="takes no argument 'modus': it has x, mode"):
        models.from_flax(Named(), BATCH, losses, training={"modus": "train"})
    with pytest.raises(ValueError, match="draws random numbers in evaluation"):
        models.from_flax(StubbornNnx, BATCH, losses)


class Frozen(nn.Module):
    fixed: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=self.fixed or not train)(x))


STATISTICS = {
    "BatchNorm_0": {"mean": np.array([1.0, 2.0], np.float32), "var": np.array([4.0, 0.25], np.float32)}
}


def test_statistics_of_a_pretrained_network_are_constants():
    task = models.from_flax(Frozen(), BATCH, losses, constants={"batch_stats": STATISTICS})
    params = task.init(KEY)
    assert set(params) == {"BatchNorm_0", "Dense_0"} and set(params["BatchNorm_0"]) == {"scale", "bias"}
    by_hand = Frozen().apply({"params": params, "batch_stats": STATISTICS}, BATCH["x"])
    np.testing.assert_allclose(task.predict(params, BATCH), by_hand, rtol=1e-6)
    np.testing.assert_allclose(task.loss(params, BATCH, KEY), losses(by_hand, BATCH), rtol=1e-6)


def test_statistics_of_a_made_nnx_module_are_constants():
    module = NnxNorm(nnx.Rngs(0))
    module.norm.mean[...], module.norm.var[...] = jnp.array([1.0, 2.0]), jnp.array([4.0, 0.25])
    task = models.from_flax(module, BATCH, losses, constants=["BatchStat"])
    module.eval()
    np.testing.assert_allclose(
        task.loss(task.init(KEY), BATCH, KEY), losses(module(BATCH["x"]), BATCH), rtol=1e-6
    )
    with pytest.raises(TypeError, match="one already made"):
        models.from_flax(NnxNorm, BATCH, losses, constants=["BatchStat"])


def test_constants_that_do_not_fit_or_would_change_are_refused():
    with pytest.raises(ValueError, match=r"constants=\{'batch_stats': ...\} do not fit Frozen"):
        models.from_flax(
            Frozen(),
            BATCH,
            losses,
            constants={"batch_stats": {"BatchNorm_0": {"mean": np.zeros(3), "var": np.ones(3)}}},
        )
    with pytest.raises(ValueError, match=r"it keeps \['batch_stats'\]"):
        models.from_flax(Frozen(), BATCH, losses, constants={"cache": {}})
    with pytest.raises(ValueError, match="changes its constants in training"):
        models.from_flax(Frozen(fixed=False), BATCH, losses, constants={"batch_stats": STATISTICS})


@pytest.mark.parametrize(
    "loss", [lambda o, b: losses(o, b).mean(), lambda o, b: o, lambda o, b: losses(o, b)[:, None]]
)
def test_a_loss_that_is_not_one_number_an_example_is_refused(loss):
    with pytest.raises(ValueError, match="must return one floating number an example"):
        models.from_flax(nn.Dense(3), BATCH, loss)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="metric 'accuracy' must be one number an example"):
        models.from_flax(
            nn.Dense(3), BATCH, losses, metrics=lambda o, b: {"accuracy": models.accuracy(o, b["y"]).mean()}
        )
    with pytest.raises(ValueError, match="draws random numbers in evaluation"):
        models.from_flax(nn.Sequential([nn.Dropout(0.5, deterministic=False), nn.Dense(3)]), BATCH, losses)
    with pytest.raises(TypeError, match="needs a linen or nnx module"):
        models.from_flax(nn.Dense, BATCH, losses)
    with pytest.raises(TypeError, match="not an nnx"):
        models.from_flax(lambda rngs: 3, BATCH, losses)
    with pytest.raises(TypeError, match="example_batch is a dict of columns"):
        models.from_flax(nn.Dense(3), jnp.ones((2, 2)), losses)


def test_cnn_takes_images_of_any_shape_and_drops_only_in_training():
    task = models.cnn(shape=(8, 8, 1), classes=3, dropout=(0.25, 0.5))
    params = task.init(KEY)
    x = jax.random.randint(KEY, (2, 8, 8), 0, 256).astype(jnp.uint8)
    batches = [
        Batch({"x": images, "y": jnp.array([0, 2], jnp.uint8)}, jnp.ones(2))
        for images in (x, x.reshape(2, 64), x[..., None])
    ]
    logits = [task.predict(params, batch) for batch in batches]
    assert logits[0].shape == (2, 3) and (logits[0] == logits[1]).all() and (logits[0] == logits[2]).all()
    assert (task.loss(params, batches[0], KEY) != task.loss(params, batches[0], OTHER)).any()
