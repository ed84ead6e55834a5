"""`compose` refuses what no backend can run, before anything runs, and says how it should be."""

from typing import NamedTuple

import jax
import optax
import pytest

from fedjax_core import aggregators, algorithms, compose, models
from fedjax_core.partial import why_not

FEDAVG = algorithms.fedavg(models.linear(features=2), optax.sgd(0.1))
IFCA = algorithms.ifca(models.linear(features=2), 2, optax.sgd(0.1))
(EXCHANGE,) = FEDAVG.exchanges


class Nameless(NamedTuple):
    model: object


@pytest.mark.parametrize("work", ["epoch", "none", None, "Train"])
def test_work_that_is_not_known_is_refused(work):
    with pytest.raises(ValueError, match=f"exchange 0 has work={work!r}: 'train'"):
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


def test_a_server_has_the_model_as_its_params():
    with pytest.raises(TypeError, match=r"a field `params` with the model, and made a Nameless without"):
        compose(FEDAVG._replace(init=Nameless))


def test_a_mean_is_known_by_what_it_does_and_not_by_its_name():
    mine, disguised = aggregators.mean()._replace(name="mine"), aggregators.trimmed_mean(0.1)._replace(name="mean")
    compose(IFCA, aggregator=mine)
    with pytest.raises(ValueError, match="only as a weighted mean"):
        compose(IFCA, aggregator=disguised)
    assert why_not(compose(FEDAVG, aggregator=mine)) is None
    total = aggregators.mean()._replace(name="mean", value=lambda acc: jax.tree.map(lambda x: x * 1.0, acc.total))
    for other, said in ((disguised, "needs the report of each client"), (total, "no mean by weight")):
        assert said in (why_not(compose(FEDAVG, aggregator=other)) or "")
