import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_core import Clients, Simulator, Task, aggregators, algorithms, compose, models


def two_groups():
    """Eight clients whose targets follow y = x w or y = -x w."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(8):
        x = rng.normal(size=(20, 2)).astype(np.float32)
        made.append({"x": x, "y": (x @ [1.0, 2.0] * (1 if i % 2 else -1)).astype(np.float32)})
    return Clients.from_list(made)


@pytest.mark.proves("ifca", by="closed form: two groups and their means")
def test_it_finds_two_groups_and_both_models():
    linear = models.linear(features=2)
    # Models that begin alike cannot be told apart: each begins at random.
    task = Task(
        lambda key: jax.tree.map(lambda p: jax.random.normal(key, p.shape), linear.init(key)),
        linear.loss,
        linear.metrics,
    )
    sim = Simulator(
        compose(algorithms.ifca(task, models=2, local=optax.sgd(0.05))), two_groups(), batch_size=5, epochs=2
    )
    state, _ = sim.run_many(sim.init(jax.random.key(2)), [list(range(8))] * 30)
    choice = np.asarray(state.clients.own)
    assert len(set(choice[::2])) == 1 and len(set(choice[1::2])) == 1 and choice[0] != choice[1]
    assert sim.evaluate(state).pooled["loss"] < 1e-3


def test_a_model_that_nobody_chose_stays_where_it_was():
    linear = models.linear(features=2)
    task = Task(
        lambda key: jax.tree.map(lambda p: 100 * jax.random.normal(key, p.shape), linear.init(key)),
        linear.loss,
    )
    sim = Simulator(
        compose(algorithms.ifca(task, models=5, local=optax.sgd(0.05))), two_groups(), batch_size=5
    )
    before = sim.init(jax.random.key(0))
    after, _ = sim.run(before, [0])
    chosen = int(after.clients.own[0])
    for x, y in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        still = np.delete(np.asarray(x), chosen, axis=0)
        assert np.array_equal(still, np.delete(np.asarray(y), chosen, axis=0))
        assert not np.array_equal(x[chosen], y[chosen])


def test_a_median_in_each_group_withstands_one_of_its_clients_who_lies():
    """By a mean, the group's model would be where its liar is."""
    linear = models.linear(features=2)
    task = Task(
        lambda key: jax.tree.map(lambda p: jax.random.normal(key, p.shape), linear.init(key)),
        linear.loss,
        linear.metrics,
    )
    algorithm = algorithms.ifca(task, models=2, local=optax.sgd(0.05))
    choose, train = algorithm.exchanges

    def lie(message, carry, seen):
        report = train.client.finish(message, carry, seen)
        return report._replace(
            update=jax.tree.map(lambda x: jnp.where(seen.examples == 5, 100.0, x), report.update)
        )

    lied = algorithm._replace(exchanges=(choose, train._replace(client=train.client._replace(finish=lie))))
    liar = {name: x[:5] for name, x in two_groups()[0].items()}
    data, losses = Clients.from_list([*two_groups(), liar]), {}
    for aggregator in (aggregators.median(), aggregators.mean()):
        sim = Simulator(
            compose(algorithms.unweighted(lied), aggregator=aggregator), data, batch_size=5, epochs=2, lanes=3
        )
        state, _ = sim.run_many(sim.init(jax.random.key(2)), [list(range(9))] * 10)
        losses[aggregator.name] = float(np.max(sim.evaluate(state).clients["loss"][:8]))
    assert losses["median"] < 0.1 and losses["mean"] > 100
