"""`compose` refuses what no backend can run, before anything runs, and says how it should be."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_core import aggregators, algorithms, compose, models, privacy, uplink
from fedjax_core.composition import check_metrics
from fedjax_core.metrics import Sum
from fedjax_core.partial import incompatibility
from tests import zoo

FEDAVG = algorithms.fedavg(models.linear(features=2), optax.sgd(0.1))
(EXCHANGE,) = FEDAVG.exchanges
PARTS = FEDAVG._replace(exchanges=(EXCHANGE._replace(reports="mean"),))


class Nameless(NamedTuple):
    model: object


@pytest.mark.parametrize("work", ["train", "once", None, 1])
def test_work_that_is_none_is_refused(work):
    with pytest.raises(
        TypeError,
        match=f"exchange 0 has work={work!r}, and should have a Work .* TRAIN goes by the run's .* ONCE takes",
    ):
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
    with pytest.raises(
        ValueError, match="metric 'loss' is given by the step of exchange 0 and by its finish"
    ):
        check_metrics(composed, columns, 2)


@pytest.mark.parametrize(
    ("stats", "error", "said"),
    [
        ({"weight": jnp.float32(1)}, ValueError, "the report of exchange 0 has stats called 'weight'"),
        (
            {"a": {"b": jnp.float32(1)}},
            TypeError,
            "stats 'a' of exchange 0 are a dict: each is an array of numbers",
        ),
        (
            jnp.float32(1),
            TypeError,
            "the stats of a report in exchange 0 are a ShapeDtypeStruct: give a dict",
        ),
    ],
)
def test_stats_are_arrays_with_names(stats, error, said):
    with pytest.raises(error, match=said):
        compose(reporting(stats=stats))


def test_stats_that_nobody_reads_are_refused():
    (exchange,) = reporting(stats={"steps": jnp.float32(1)}).exchanges
    with pytest.raises(
        ValueError, match="exchange 0 is silent, so nobody reads the stats steps: give it an update="
    ):
        compose(FEDAVG._replace(exchanges=(exchange._replace(update=None), EXCHANGE)))


def test_reports_with_stats_cannot_be_gathered_as_a_mean():
    assert "reads numbers of each client (steps)" in (
        incompatibility(compose(reporting(stats={"steps": jnp.float32(1)}))) or ""
    )


def reporting(**more):
    """FedAvg with more in its reports."""

    def finish(message, carry, seen):
        return EXCHANGE.client.finish(message, carry, seen)._replace(**more)

    return FEDAVG._replace(exchanges=(EXCHANGE._replace(client=EXCHANGE.client._replace(finish=finish)),))


def test_a_server_has_the_model_as_its_params():
    with pytest.raises(TypeError, match=r"a field `params` with the model, and made a Nameless without"):
        compose(FEDAVG._replace(init=Nameless))


def test_what_meets_in_parts_is_said_by_the_aggregator_and_not_by_its_name():
    mine, disguised = (
        aggregators.mean()._replace(name="mine"),
        aggregators.trimmed_mean(0.1, weighted=True)._replace(name="mean"),
    )
    compose(PARTS, aggregator=mine)
    compose(PARTS, aggregator=aggregators.total())
    with pytest.raises(ValueError, match="only as a weighted mean"):
        compose(PARTS, aggregator=disguised)
    assert incompatibility(compose(FEDAVG, aggregator=mine)) is None
    remembering = mine._replace(init=lambda shapes: jnp.float32(0))
    for other, said in (
        (disguised, "does not add up to that of all"),
        (remembering, "keeps state at the server"),
    ):
        assert said in (incompatibility(compose(FEDAVG, aggregator=other)) or "")


def exchanging(**more):
    """FedAvg whose exchange has more."""
    return FEDAVG._replace(exchanges=(EXCHANGE._replace(**more),))


def test_a_server_that_needs_every_report_is_given_a_stack_and_no_one_value():
    stacked = exchanging(reports="all", update=lambda server, reports: server)
    assert compose(stacked).aggregator.name == "stack" and compose(FEDAVG).aggregator.name == "mean"
    with pytest.raises(
        ValueError,
        match=r"mean\(\) makes one of all reports, and the server of fedavg needs every one of them",
    ):
        compose(stacked, aggregator=aggregators.mean())
    with pytest.raises(
        ValueError,
        match=r"stack\(\) leaves all reports as they are, and the server of fedavg takes one value",
    ):
        compose(FEDAVG, aggregator=aggregators.stack())
    with pytest.raises(ValueError, match=r"secure.* only reveals their sum"):
        compose(stacked, uplink=uplink.secure(1.0))
    noise = uplink.stage("noise", finish=lambda state, value, info, key: (jnp.add(value["w"], 1.0), state))
    with pytest.raises(ValueError, match=r"noise has something left to do once reports have met \(finish\)"):
        compose(stacked, uplink=noise)
    compose(stacked, uplink=uplink.chain(uplink.clip(1.0), uplink.feedback(uplink.quantize(bits=4))))


@pytest.mark.parametrize("slots", [0, 1.0, True, "2"])
def test_slots_are_counted(slots):
    with pytest.raises(ValueError, match="a whole number of 1 or more"):
        compose(exchanging(slots=slots))


def test_reports_meet_in_slots_where_each_is_seen_and_stages_keep_nothing_for_one():
    two = exchanging(
        slots=2,
        update=lambda server, reports: server._replace(params={n: x[0] for n, x in reports.value.items()}),
    )
    assert (
        compose(two, uplink=uplink.clip(1.0), aggregator=aggregators.trimmed_mean(0.1, weighted=True)).slots
        == 2
    )
    with pytest.raises(ValueError, match="reveals only the sum over all clients, not that of each slot"):
        compose(two, uplink=uplink.secure(1.0), aggregator=aggregators.total())
    remembers = uplink.stage("remembers", init=lambda shapes: jnp.zeros(3))
    with pytest.raises(
        ValueError, match="remembers keeps state at the server for one value, and fedavg has 2 slots"
    ):
        compose(two, uplink=remembers)
    with pytest.raises(ValueError, match="exchanges with 1 and 2 slots, and one aggregator for all"):
        compose(two._replace(exchanges=(*two.exchanges, EXCHANGE)))
    assert "name the slot of their report" in (incompatibility(compose(two)) or "")


def test_a_round_says_who_is_addressed():
    addressed = exchanging(address=lambda server, clients: jnp.zeros(len(clients)), client=EXCHANGE.client._replace(
        begin=lambda told, own, key: EXCHANGE.client.begin(told.message, own, key),
        finish=lambda told, carry, seen: EXCHANGE.client.finish(told.message, carry, seen),
    ))  # fmt: skip
    composed = compose(addressed)
    with pytest.raises(
        ValueError, match="exchange 0 of fedavg tells each client something of its own: give clients="
    ):
        composed.broadcast(0, composed.init(jax.random.key(0), 1))
    assert "tells each client something of its own" in (incompatibility(composed) or "")
    with pytest.raises(
        ValueError, match=r"address= of exchange 0 gives an array of shape \(2,\) for 3 clients"
    ):
        compose(
            addressed._replace(
                exchanges=(addressed.exchanges[0]._replace(address=lambda server, clients: jnp.zeros(2)),)
            )
        )


def test_a_slot_would_leave_without_the_noise_that_a_stage_promises():
    private = privacy.client_level(population=1000, cohort=50, rounds=10, clip=1.0, noise=2.0)
    two = exchanging(
        slots=2,
        update=lambda server, reports: server._replace(params={n: x[0] for n, x in reports.value.items()}),
    )
    with pytest.raises(
        ValueError, match="name the slot of their report, which leaves without the noise of 'client level'"
    ):
        compose(two, uplink=private.uplink, aggregator=private.aggregator)


RULES = {**zoo.AGGREGATORS, **zoo.ROBUST}
ALIKE = [name for name, make in RULES.items() if make().alike]


def test_most_rules_that_withstand_liars_count_all_alike():
    assert len(ALIKE) > 12 and {
        "krum",
        "median",
        "trimmed mean",
        "bucketing",
        "arc",
        "nnm, centered clipping",
    } < set(ALIKE)
    assert not {"mean", "total", "rfa", "by weight", "zeroing", "norm bound"} & set(ALIKE)


@pytest.mark.parametrize("name", ALIKE)
def test_a_rule_that_counts_all_alike_refuses_weights_and_says_the_ways_out(name):
    rule = RULES[name]()
    said = rf"{re.escape(rule.name)}\(\) counts all clients alike, and the reports of fedavg have weights, by what each client worked on"
    with pytest.raises(
        ValueError, match=said + r".*weighting=fc.algorithms.uniform.*fc.algorithms.unweighted.*weighted=True"
    ):
        compose(FEDAVG, aggregator=rule)
    assert compose(algorithms.unweighted(FEDAVG), aggregator=rule).algorithm.name == "unweighted(fedavg)"


@pytest.mark.parametrize("name", [name for name in RULES if name not in ALIKE])
def test_a_rule_that_goes_by_weights_takes_them(name):
    compose(FEDAVG, aggregator=RULES[name]())


def test_weights_that_differ_in_any_way_are_refused_and_those_that_do_not_are_taken():
    median = aggregators.median()
    compose(algorithms.fedavg(FEDAVG.task, optax.sgd(0.1), weighting=algorithms.uniform), aggregator=median)
    compose(algorithms.scaffold(FEDAVG.task, 0.1, 3), aggregator=median)
    compose(exchanging(update=lambda server, reports: server), aggregator=aggregators.mean())
    told = zoo.addressed(4).algorithm
    with pytest.raises(ValueError, match="have weights, by what each client is told"):
        compose(told, aggregator=median)
    compose(algorithms.unweighted(told), aggregator=median)

    def finish(message, carry, seen):
        return EXCHANGE.client.finish(message, carry, seen)._replace(weight=jnp.exp(carry.params["b"]))

    with pytest.raises(ValueError, match="by what each client worked on"):
        compose(exchanging(client=EXCHANGE.client._replace(finish=finish)), aggregator=median)


def test_an_unweighted_report_has_a_weight_of_one_and_is_otherwise_as_it_was():
    (after,) = algorithms.unweighted(FEDAVG).exchanges
    params = FEDAVG.task.init(jax.random.key(0))
    message = EXCHANGE.broadcast(FEDAVG.init(params))
    carry, seen = (
        EXCHANGE.client.begin(message, (), jax.random.key(1)),
        algorithms.Seen(jnp.float32(5), jnp.float32(2)),
    )
    was, now = (one.client.finish(message, carry, seen) for one in (EXCHANGE, after))
    assert (float(was.weight), float(now.weight)) == (5, 1) and now.weight.dtype == jnp.float32
    assert all(
        np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (was.update, now.update)), strict=True)
    )


def half_steps(task):
    """An algorithm that somebody wrote, without a word of its name."""

    def finish(message, carry, seen):
        return EXCHANGE.client.finish(message, carry, seen)

    exchange = EXCHANGE._replace(client=EXCHANGE.client._replace(finish=finish))
    return algorithms.Algorithm(task, task.init, FEDAVG.init, lambda params: (), (exchange,))


def test_an_algorithm_of_ones_own_is_called_like_the_function_that_made_it():
    made = half_steps(FEDAVG.task)
    assert compose(made).algorithm.name == "half_steps" and repr(compose(made)).startswith("Round(half_steps")
    with pytest.raises(
        ValueError, match=r"stack\(\) leaves all reports as they are, and the server of half_steps"
    ):
        compose(made, aggregator=aggregators.stack())
    assert (
        compose(made._replace(name="mine")).algorithm.name == "mine"
        and compose(FEDAVG).algorithm.name == "fedavg"
    )
    # of functions of the package alone
    bare = FEDAVG._replace(name=algorithms.Algorithm._field_defaults["name"])
    assert compose(bare).algorithm.name == "this algorithm"
