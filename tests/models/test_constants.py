"""What is frozen is an argument of every backend's programs, and the model is the one that has it in its
text."""

import gc
import time
import weakref
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core import describe
from fedjax_core.constants import Constants, compiled
from fedjax_core.loops import Loops
from fedjax_core.partial import partial_round
from fedjax_core.sites.federation import Federation
from fedjax_core.sites.site_file import SiteFile

SIZE, WIDTH, CLASSES = 6, 5, 3


def params(size=SIZE, seed=0):
    draw = np.random.default_rng(seed)
    body = draw.normal(size=(size, WIDTH)).astype(np.float32)
    return {"body": body, "head": np.zeros((WIDTH, CLASSES), np.float32)}


def loss(params, batch, key):
    return optax.softmax_cross_entropy_with_integer_labels(
        jnp.tanh(batch["x"] @ params["body"]) @ params["head"], batch["y"]
    )


PLAIN = fc.Task(
    lambda key: params(),
    loss,
    predict=lambda params, batch: jnp.tanh(batch["x"] @ params["body"]) @ params["head"],
)


def in_text(task, begun):
    """The same, with the body as a constant of each program."""
    whole = lambda head: {"body": jnp.asarray(begun["body"]), "head": head["head"]}  # noqa: E731
    return task._replace(
        init=lambda key: {"body": None, "head": jnp.asarray(begun["head"])},
        loss=lambda head, batch, key: task.loss(whole(head), batch, key),
        predict=lambda head, batch: task.predict(whole(head), batch),
    )


def clients(size=SIZE):
    draw = np.random.default_rng(1)
    return fc.Clients.from_list(
        [
            {
                "x": draw.normal(size=(n, size)).astype(np.float32),
                "y": draw.integers(0, CLASSES, n).astype(np.int32),
            }
            for n in (7, 3, 9, 4)
        ]
    )


def composed(task):
    return fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.3)))


def simulated(task, mesh=None, **more):
    sim = fc.Simulator(
        composed(task), clients(), batch_size=4, epochs=1, **{"lanes": 2, "mesh": mesh, **more}
    )
    state, found = sim.run_many(sim.init(jax.random.key(0)), [[0, 1, 2, 3], [2, 0]])
    return state.params, found, sim.evaluate(state).pooled


FROZEN = fc.models.train_only(PLAIN, params(), "head")
TEXT = in_text(PLAIN, params())


@pytest.fixture(scope="module")
def expected():
    return simulated(TEXT)


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_lanes_find_the_same_to_the_last_bit(expected):
    equal(simulated(FROZEN), expected)


def test_lanes_on_several_devices_find_the_same_to_the_last_bit():
    mesh = jax.make_mesh((2,), ("lanes",), devices=jax.devices()[:2])
    equal(simulated(FROZEN, mesh), simulated(TEXT, mesh))


def test_a_body_is_split_over_a_second_axis_as_the_model_is(expected):
    mesh = jax.make_mesh((2, 2), ("lanes", "model"), devices=jax.devices()[:4])
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), simulated(FROZEN, mesh)[0], expected[0]
    )


@pytest.mark.parametrize("jit", (True, False))
def test_plain_loops_find_the_same(jit):
    found = []
    for task in (FROZEN, TEXT):
        loops = Loops(composed(task), clients(), batch_size=4, epochs=1, jit=jit)
        found.append(loops.run(loops.init(jax.random.key(0)), [0, 1])[0].params)
    equal(*found)


def test_a_share_of_a_cluster_s_worker_finds_the_same():
    from fedjax_core.client_state.base import Carried
    from fedjax_core.cluster.schedule import room_for
    from fedjax_core.cluster.shard import Broadcast, Shard, Worker, to_host
    from fedjax_core.data.batches import Plan
    from fedjax_core.lanes.dispatch import slots_of
    from fedjax_core.round import Among, Kept
    from fedjax_core.work import TRAIN

    found, data, plan = [], clients(), Plan(batch_size=4, epochs=1)
    steps = {TRAIN: slots_of(plan, data.sizes, TRAIN).astype(np.int32)}
    room = room_for(4, 1, 2, steps, data.sizes.astype(np.float64), data.sizes)
    for task in (FROZEN, TEXT):
        whole = composed(task)
        state, who = whole.init(jax.random.key(0), 4), np.arange(4)
        told = Broadcast(
            exchange=0, sent=to_host(whole.broadcast(0, state)[0]), uplink=to_host(state.uplink[0]), round=np.int32(0),
            key=to_host(state.key), among=Among(data.addresses, np.ones(4, bool)), measured={},
        )  # fmt: skip
        share = Shard(who, who, np.ones(4), Carried(Kept((), ((),))), room, np.ones(4, bool))
        found.append(Worker(whole, data, plan, streamed=False).run(told, share).collected.acc)
    equal(*found)


def of_sites(task):
    data = clients()
    files = [SiteFile(name=f"site{i}", data=data[i]) for i in range(len(data))]
    with Federation(composed(task), files, batch_size=4, epochs=1, transport="in-process") as fed:
        state, _ = fed.run(fed.init(jax.random.key(0)), [0, 1, 2, 3])
        return state.params, fed.evaluate(state).pooled


def test_sites_find_the_same():
    equal(of_sites(FROZEN), of_sites(TEXT))


def test_a_body_below_another_is_an_argument_too():
    task = fc.models.mlp(SIZE, hidden=(WIDTH,), classes=CLASSES)
    pretrained = task.init(jax.random.key(3))
    adapted = fc.models.lora(task, pretrained, "0/w", rank=2)
    factors = fc.models.train_only(adapted, adapted.init(jax.random.key(1)), "a", "b")
    # the other leaves; the base and its scale
    assert [len(jax.tree.leaves(one.arrays)) for one in factors.constants] == [
        3,
        2,
    ]
    begun = adapted.init(jax.random.key(1))

    def loss(trained, batch, key):
        weights = begun.base[0]["w"] + trained.a[0]["w"] @ trained.b[0]["w"]
        return task.loss([{"w": weights, "b": pretrained[0]["b"]}, pretrained[1]], batch, key)

    text = fc.Task(factors.init, loss)
    (found, _, _), (expected, _, _) = simulated(factors), simulated(text)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), found, expected)
    assert found.b[0]["w"].any()


def text_of(size):
    task = fc.models.train_only(PLAIN._replace(init=lambda key: params(size)), params(size), "head")
    sim = fc.Simulator(composed(task), clients(size), batch_size=4, epochs=1, lanes=2)
    state = sim.init(jax.random.key(0))
    sim.reserve(4)
    nobody, _ = sim._feed.pack([fc.Cohort(np.arange(4), np.ones(4))], 0, 1)
    return sim, len(sim._program(False).lower(sim._data, np.int32(1), state, nobody).as_text())


def test_the_text_of_a_program_does_not_grow_with_the_body_and_the_plan_counts_it():
    small, few = text_of(SIZE)
    large, many = text_of(40 * SIZE)
    # a body of 1,200 numbers has 9,600 hexadecimal digits
    assert abs(many - few) < 2000 and few < many + 2000
    assert [sim.plan(4).constants for sim in (small, large)] == [4 * SIZE * WIDTH, 4 * 40 * SIZE * WIDTH]
    assert large.plan(4).total >= 4 * 40 * SIZE * WIDTH and "constants" in str(large.plan(4))


def test_a_body_is_part_of_what_a_study_is_and_goes_to_another_process_without_its_device():
    import cloudpickle

    same, other = (
        describe.identity(fc.models.train_only(PLAIN, params(seed=seed), "head")) for seed in (0, 1)
    )
    assert describe.identity(FROZEN) == same != other
    assert FROZEN.constants[0].now["head"] is None
    again = cloudpickle.loads(cloudpickle.dumps(FROZEN))
    assert describe.identity(again) == same and again.constants[0]._on_device is None
    equal(again.constants[0].arrays, FROZEN.constants[0].arrays)


def test_what_was_traced_of_one_program_is_not_read_by_another():
    body = Constants(np.ones(3, np.float32))
    read = lambda x: x * body.now  # noqa: E731
    first, second = compiled(read, (body,)), compiled(lambda x: jax.vmap(read)(x), (body,))
    equal(first(jnp.ones(3)), np.ones(3))
    equal(second(jnp.ones((2, 3))), np.ones((2, 3)))
    equal(first(jnp.full(3, 2.0)), np.full(3, 2.0))
    equal(read(jnp.ones(3)), np.ones(3))


def test_around_remat_and_within_it():
    batch = fc.Batch(jax.tree.map(jnp.asarray, clients()[2]), jnp.ones(9))
    tasks = (
        FROZEN,
        fc.models.remat(FROZEN, 2),
        fc.models.train_only(fc.models.remat(PLAIN, 2), params(), "head"),
    )
    for task in tasks:
        step = compiled(jax.grad(task.mean_loss), task.constants)
        for size in (9, 9, 4):
            part = jax.tree.map(lambda x, size=size: x[:size], batch)
            found = step(FROZEN.init(None), part, jax.random.key(0))
            expected = jax.grad(TEXT.mean_loss)(FROZEN.init(None), part, jax.random.key(0))
            np.testing.assert_allclose(found["head"], expected["head"], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_compiling_takes_no_longer_with_a_large_body():
    """Processor seconds of lowering and compiling a round; a body of 4 million numbers took twice the time
    within the text."""

    def seconds(task, size):
        sim = fc.Simulator(composed(task), clients(size), batch_size=4, epochs=1, lanes=2)
        begun = time.process_time()
        sim.plan(4)
        return time.process_time() - begun

    sizes, took = (SIZE, 800_000), []
    for size in sizes:
        begun = params(size)
        took.append(
            seconds(
                fc.models.train_only(PLAIN._replace(init=lambda key, begun=begun: begun), begun, "head"), size
            )
        )
    assert took[1] < 3 * took[0] + 1, took


@pytest.mark.parametrize("used", [simulated, of_sites, lambda task: partial_round(composed(task))])
def test_a_body_is_gone_once_its_task_is(used):
    begun = params()
    task = fc.models.train_only(PLAIN._replace(init=lambda key: begun), begun, "head")
    used(task)
    body = weakref.ref(task.constants[0])
    del task
    gc.collect()
    assert body() is None
