"""What is measured at sites is what a simulator measures, by the same names; what a policy keeps is said
before the first round."""

import logging

import jax
import jax.numpy as jnp
import optax
import pytest

import fedjax_core as fc
from fedjax_core.metrics import Mean, Sum, mean, summary
from tests.sites.federations import BATCH, columns, federation, simulator, site_files


def measuring(**metrics):
    """FedAvg whose step gives these metrics beside the loss."""
    algorithm = fc.algorithms.fedavg(fc.models.linear(features=3), optax.sgd(0.1))
    (exchange,) = algorithm.exchanges

    def step(message, carry, batch, key):
        carry, seen = exchange.client.step(message, carry, batch, key)
        return carry, seen | {name: make(batch) for name, make in metrics.items()}

    client = exchange.client._replace(step=step)
    return fc.compose(algorithm._replace(exchanges=(exchange._replace(client=client),)))


def in_process(composed, **settings):
    return fc.Federation(
        composed, site_files("numbers"), batch_size=BATCH, epochs=2, transport="in-process", **settings
    )


def test_metrics_of_an_algorithm_come_to_the_coordinator_as_in_the_simulator():
    composed = measuring(
        drift=lambda batch: mean(batch["y"], batch.mask), Hits=lambda batch: Sum(jnp.sum(batch.mask))
    )
    sim = simulator(composed, "numbers")
    expected = summary(sim.run(sim.init(jax.random.key(1)), range(4))[1])
    with in_process(composed) as fed:
        found = summary(fed.run(fed.init(jax.random.key(1)), range(4))[1])
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert expected["Hits"] == 2 * 33 and "drift" in expected


@pytest.mark.parametrize(
    "name", ["weight", "examples", "data_was", "steps_done", "refused", "clients", "loss.weight"]
)
def test_a_name_that_has_a_meaning_is_refused_by_simulator_and_site_alike(name):
    composed, said = measuring(**{name: lambda batch: mean(batch["y"], batch.mask)}), []
    for start in (lambda: simulator(composed, "numbers"), lambda: in_process(composed)):
        with pytest.raises(ValueError, match=name) as refused:
            start()
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_a_metric_of_several_numbers_is_refused_by_simulator_and_site_alike():
    composed = measuring(each=lambda batch: Mean(batch["y"], batch.mask))
    for start in (lambda: simulator(composed, "numbers"), lambda: in_process(composed)):
        with pytest.raises(ValueError, match=r"metric 'each'.*one number"):
            start()


def test_a_metric_of_evaluation_with_such_a_name_is_refused():
    task = fc.models.linear(features=3)._replace(metrics=lambda params, batch: {"data": batch["y"]})
    composed = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1)))
    for start in (lambda: simulator(composed, "numbers"), lambda: in_process(composed)):
        with pytest.raises(ValueError, match="the task's evaluation has a metric called 'data'"):
            start()


def test_what_a_policy_keeps_is_said_at_the_start_by_metric_and_site(tmp_path, caplog):
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'site = "mayo"\n[tasks]\nmode = "first-use"\n[leaving]\nfields = ["weight", "examples", "data", "loss"]'
    )
    files = [f if f.name != "mayo" else with_policy(f, policy) for f in site_files("numbers")]
    composed = measuring(drift=lambda batch: mean(batch["y"], batch.mask))
    with (
        caplog.at_level(logging.WARNING, "fedjax_core"),
        federation(composed, "numbers", files=files) as (fed, _, _),
    ):
        said = [record.getMessage() for record in caplog.records]
        _, found = fed.run(fed.init(jax.random.key(1)), range(4))
    assert [line for line in said if "'drift'" in line] == [
        "the metric 'drift' will be without mayo, whose policy does not let it leave: its staff may name it in leaving.fields"
    ]
    assert not any("'loss'" in line for line in said)
    without_mayo = sum(2 * len(data["y"]) for data in (columns("numbers")[i] for i in (0, 2, 3)))
    assert float(found["drift"].weight) == without_mayo


def with_policy(about, policy):
    return type(about)(name=about.name, data=about.data, policy=policy)
