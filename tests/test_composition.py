"""`compose` refuses what no backend can run, before anything runs, and says how it should be."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_core import aggregators, algorithms, compose, models
from fedjax_core.composition import check_metrics
from fedjax_core.metrics import Sum
from fedjax_core.partial import why_not

FEDAVG = algorithms.fedavg(models.linear(features=2), optax.sgd(0.1))
IFCA = algorithms.ifca(models.linear(features=2), 2, optax.sgd(0.1))
(EXCHANGE,) = FEDAVG.exchanges


class Nameless(NamedTuple):
    model: object


@pytest.mark.parametrize("work", ["train", "once", None, 1])
def test_work_that_is_none_is_refused(work):
    with pytest.raises(TypeError, match=f"exchange 0 has work={work!r}, and should have a Work .* TRAIN goes by the run's .* ONCE takes"):
        compose(FEDAVG._replace(exchanges=(EXCHANGE._replace(work=work),)))


@pytest.mark.parametrize(
    ("exchanges", "said"),
    [
        (EXCHANGE, "a single Exchange: write exchanges="),
        ([EXCHANGE], "a single list"),
        ((), "an empty tuple"),
        ((lambda: EXCHANGE,), "exchange 0 of the algorithm should be an Exchange, got function"),
        ((EXCHANGE._replace(client=None),), "should be a Client as its client=, got NoneType"),
    ],
)
def test_exchanges_are_a_tuple_of_exchanges(exchanges, said):
    with pytest.raises(TypeError, match=said):
        compose(FEDAVG._replace(exchanges=exchanges))


@pytest.mark.parametrize(
    ("metrics", "error", "said"),
    [
        ({"weight": Sum(jnp.float32(1))}, ValueError, "finish of exchange 0 has a metric called 'weight'"),
        ({"moved": jnp.float32(1)}, TypeError, "metric 'moved' of finish of exchange 0 is a"),
        ({"moved": Sum(jnp.zeros(2))}, ValueError, "has the shape .2., and a metric is one number"),
        ([Sum(jnp.float32(1))], TypeError, "finish of exchange 0 gives list for its metrics"),
    ],
)
def test_metrics_of_a_report_are_those_that_a_step_may_give(metrics, error, said):
    with pytest.raises(error, match=said):
        compose(reporting(metrics=metrics))


def test_a_metric_is_of_the_steps_or_of_the_report():
    composed = compose(reporting(metrics={"loss": Sum(jnp.float32(1))}))
    columns = {"x": np.ones((1, 2), np.float32), "y": np.ones(1, np.float32)}
    with pytest.raises(ValueError, match="metric 'loss' is given by the step of exchange 0 and by its finish"):
        check_metrics(composed, columns, 2)


@pytest.mark.parametrize(
    ("stats", "error", "said"),
    [
        ({"weight": jnp.float32(1)}, ValueError, "the report of exchange 0 has stats called 'weight'"),
        ({"a": {"b": jnp.float32(1)}}, TypeError, "stats 'a' of exchange 0 are a dict: each is an array of numbers"),
        (jnp.float32(1), TypeError, "the stats of a report in exchange 0 are a ShapeDtypeStruct: give a dict"),
    ],
)
def test_stats_are_arrays_with_names(stats, error, said):
    with pytest.raises(error, match=said):
        compose(reporting(stats=stats))


def test_stats_that_nobody_reads_are_refused():
    (exchange,) = reporting(stats={"steps": jnp.float32(1)}).exchanges
    with pytest.raises(ValueError, match="exchange 0 is silent, so nobody reads the stats steps: give it an update="):
        compose(FEDAVG._replace(exchanges=(exchange._replace(update=None), EXCHANGE)))


def test_reports_with_stats_cannot_be_gathered_as_a_mean():
    assert "reads numbers of each client (steps)" in (why_not(compose(reporting(stats={"steps": jnp.float32(1)}))) or "")


def reporting(**more):
    """FedAvg with more in its reports."""

    def finish(message, carry, seen):
        return EXCHANGE.client.finish(message, carry, seen)._replace(**more)

    return FEDAVG._replace(exchanges=(EXCHANGE._replace(client=EXCHANGE.client._replace(finish=finish)),))


def test_a_server_has_the_model_as_its_params():
    with pytest.raises(TypeError, match=r"a field `params` with the model, and made a Nameless without"):
        compose(FEDAVG._replace(init=Nameless))


def test_what_meets_in_parts_is_said_by_the_aggregator_and_not_by_its_name():
    mine, disguised = aggregators.mean()._replace(name="mine"), aggregators.trimmed_mean(0.1)._replace(name="mean")
    compose(IFCA, aggregator=mine)
    compose(IFCA, aggregator=aggregators.total())
    with pytest.raises(ValueError, match="only as a weighted mean"):
        compose(IFCA, aggregator=disguised)
    assert why_not(compose(FEDAVG, aggregator=mine)) is None
    remembering = mine._replace(init=lambda shapes: jnp.float32(0))
    for other, said in ((disguised, "does not add up to that of all"), (remembering, "keeps state at the server")):
        assert said in (why_not(compose(FEDAVG, aggregator=other)) or "")
