"""Training some leaves only is training all of them with the others' gradients set to zero, and nothing of
the others travels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import describe, models
from fedjax_core.sites.wire.envelope import decode, header_of
from tests.sites.federations import federation
from tests.zoo import SGD, Small, clients, flax_task, round_of, task

PRETRAINED = task().init(jax.random.key(5))


def after_three_rounds(task, local=SGD, kind="classes", params=None):
    data = clients(kind)
    sim = fc.Simulator(fc.compose(fc.algorithms.fedavg(task, local)), data, batch_size=4, epochs=1, lanes=3)
    return sim, sim.run_many(sim.init(jax.random.key(0), params), [np.arange(len(data))] * 3)[0].params


@pytest.mark.parametrize("names", [("1",), ("0/w", "1/b")])
def test_it_is_the_whole_model_with_the_gradients_of_the_others_set_to_zero(names):
    _, part = after_three_rounds(models.train_only(task(), PRETRAINED, *names))
    labels = [
        {leaf: any(f"{i}/{leaf}".startswith(name) for name in names) for leaf in layer}
        for i, layer in enumerate(PRETRAINED)
    ]
    masked = optax.multi_transform({True: SGD, False: optax.set_to_zero()}, labels)
    _, expected = after_three_rounds(task(), masked, params=PRETRAINED)
    found = models.whole(PRETRAINED, part)
    assert jax.tree.structure(found) == jax.tree.structure(PRETRAINED)
    for moved, x, y, before in zip(*map(jax.tree.leaves, (labels, found, expected, PRETRAINED)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
        assert moved == bool(np.any(np.asarray(x) != np.asarray(before)))


def test_the_head_of_a_flax_module_is_evaluated_and_predicts_as_the_whole_does():
    plain = flax_task(Small(), "images")
    params = plain.init(jax.random.key(3))
    head = models.train_only(plain, params, "Dense_0")
    sim, trained = after_three_rounds(head, kind="images")
    assert (
        jax.tree.map(jnp.shape, trained["Dense_0"]) == jax.tree.map(jnp.shape, params["Dense_0"])
        and len(jax.tree.leaves(trained)) == 2
    )
    both = ((head, trained), (plain, models.whole(params, trained)))
    got, expected = (fc.evaluate(task, model, sim.clients).pooled for task, model in both)
    assert got == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(*(fc.predict(task, model, sim.clients) for task, model in both), rtol=1e-6)


def test_nothing_of_the_others_travels():
    with federation(round_of("head only", 4)) as (fed, _, transport):
        state, _ = fed.run(fed.init(jax.random.key(1)), [0, 1])
        raw = next(raw for raw in transport.received if header_of(raw).kind == "update")
        shapes = {x.shape for x in decode(raw, fed._roster, recipient="coordinator").tensors.values()}
    assert {(4, 3), (3,)} <= shapes and not shapes & {(3, 4), (4,)}  # of an MLP 3-4-3
    assert {x.shape for x in jax.tree.leaves(state.params)} == {(4, 3), (3,)}


def test_another_frozen_weight_is_another_study():
    other = [{"w": PRETRAINED[0]["w"].at[0, 0].add(1e-3), "b": PRETRAINED[0]["b"]}, PRETRAINED[1]]
    same, changed = (
        describe.identity(models.train_only(task(), params, "1"))
        for params in (jax.tree.map(np.array, PRETRAINED), other)
    )
    assert describe.identity(models.train_only(task(), PRETRAINED, "1")) == same != changed


def test_around_what_makes_models_fit():
    key, data = jax.random.key(0), clients()[3]
    batch = fc.Batch(jax.tree.map(jnp.asarray, data), jnp.ones(len(data["y"])))
    plain = models.train_only(task(), PRETRAINED, "1")
    for fits in (lambda task: models.remat(task, 2), lambda task: models.accumulate(task, 3)):
        got = jax.grad(models.train_only(fits(task()), PRETRAINED, "1").mean_loss)(
            plain.init(key), batch, key
        )
        expected = jax.grad(plain.mean_loss)(plain.init(key), batch, key)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), got, expected)
    narrow = models.train_only(models.bfloat16(task()), PRETRAINED, "1")
    found, expected = (float(task.mean_loss(plain.init(key), batch, key)) for task in (narrow, plain))
    assert found == pytest.approx(expected, rel=2e-2)


def test_a_name_of_no_leaf_is_refused():
    with pytest.raises(
        ValueError, match=r"there is no leaf under '2': the leaves are '0/b', '0/w', '1/b', '1/w'"
    ):
        models.train_only(task(), PRETRAINED, "1", "2")
    with pytest.raises(ValueError, match=r"there is no leaf under '0/w0'"):
        models.train_only(task(), PRETRAINED, "0/w0")
    with pytest.raises(ValueError, match=r"needs at least one name"):
        models.train_only(task(), PRETRAINED)


def test_a_tree_is_taken_apart_and_is_whole_again():
    layers = [{"w": 1, "b": 2}, {"w": 3, "deep": (4, 5)}]
    some, others = fc.tree.partition(layers, ["0/w", "1/deep"])
    assert some == [{"w": 1, "b": None}, {"w": None, "deep": (4, 5)}] and others == [
        {"w": None, "b": 2},
        {"w": 3, "deep": (None, None)},
    ]
    assert fc.tree.combine(some, others) == fc.tree.combine(others, some) == layers
    assert fc.tree.partition(layers, ())[1] == layers and fc.tree.names(some) == [
        "0/w",
        "1/deep/0",
        "1/deep/1",
    ]
