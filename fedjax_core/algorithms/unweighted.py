"""An algorithm with all reports weighted alike, for a rule without weights, such as Krum.

    weight of a report = 1        instead of the number of examples, or whatever else the algorithm weighs by

The objective is then the mean over clients. An algorithm that takes `weighting=` can say `weighting=uniform`
instead.

>>> import optax
>>> from fedjax_core import aggregators, compose, models
>>> from fedjax_core.algorithms.ifca import ifca
>>> algorithm = ifca(models.linear(features=3), 2, optax.sgd(0.1))
>>> compose(unweighted(algorithm), aggregator=aggregators.median()).algorithm.name
'unweighted(ifca)'
"""

from fedjax_core.algorithms.base import Algorithm, Exchange, Report, Seen, uniform
from fedjax_core.types import Carry, Message


def unweighted(algorithm: Algorithm) -> Algorithm:
    """The algorithm with a weight of 1 for each report, in every exchange."""

    def alike(exchange: Exchange) -> Exchange:
        client = exchange.client

        def finish(message: Message, carry: Carry, seen: Seen) -> Report:
            return client.finish(message, carry, seen)._replace(weight=uniform(seen))

        return exchange._replace(client=client._replace(finish=finish))

    return algorithm._replace(
        name=f"unweighted({algorithm.name})", exchanges=tuple(map(alike, algorithm.exchanges))
    )
