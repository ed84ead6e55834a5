"""Rules that keep the promise of a stage that adds noise: `compose` checks the other pieces of a round
against them.

A noisy sum tells little of any one client only where nothing else of its data leaves: no report counts by a
number that the client chooses, nothing is divided by how many there were, and no metric goes beside it. Each
rule looks at one piece, and says what is wrong with it and the way out.

>>> from fedjax_core import algorithms, aggregators, compose, models, privacy, uplink
>>> private = privacy.client_level(population=1000, cohort=50, rounds=10, clip=1.0, noise=2.0)
>>> algorithm = algorithms.fedavg(models.linear(features=3), local=__import__("optax").sgd(0.1))
>>> compose(algorithm, uplink=private.uplink, aggregator=aggregators.mean())
Traceback (most recent call last):
ValueError: mean() makes of reports what a client's weight changes, so clip and noise of 'client level' bound nothing: use its aggregator...
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_core import keys, tree
from fedjax_core.aggregators.base import Aggregator
from fedjax_core.algorithms.base import Aggregate, Algorithm, Each, Exchange, Report, Seen, Told, message_of
from fedjax_core.types import Batch, Carry, Key, Message
from fedjax_core.uplink.base import Stage


def kept(algorithm: Algorithm, uplink: Stage) -> Algorithm:
    """The algorithm without the metrics of its clients' steps where the uplink adds noise: they would leave
    without noise.

    An account with `open_metrics` lets them be seen, as in a simulation that nobody has to be protected
    from."""
    account = uplink.promises.account
    if uplink.promises.noise is None or getattr(account, "open_metrics", False):
        return algorithm

    def quiet(exchange: Exchange) -> Exchange:
        step = exchange.client.step

        def silently(message: Message, carry: Carry, batch: Batch, key: Key) -> tuple[Carry, dict[str, Any]]:
            return step(message, carry, batch, key)[0], {}

        return exchange._replace(client=exchange.client._replace(step=silently))

    return algorithm._replace(exchanges=tuple(map(quiet, algorithm.exchanges)))


def check(algorithm: Algorithm, uplink: Stage, aggregator: Aggregator, reports: list[Report]) -> None:
    """Raises ValueError, naming the piece, where one breaks what the uplink promises. `reports`: their
    shapes, one an exchange."""
    for problem in broken(algorithm, uplink, aggregator, reports):
        raise ValueError(problem)


def broken(
    algorithm: Algorithm, uplink: Stage, aggregator: Aggregator, reports: list[Report]
) -> Iterator[str]:
    """Yields what breaks the promise, a sentence each; nothing where no noise is promised."""
    promised, name = uplink.promises, uplink.name
    if promised.noise is None:
        return
    if promised.at == "server" and aggregator.name != "total":
        yield (
            f"{aggregator.name}() makes of reports what a client's weight changes, so clip and noise of {name!r} bound nothing: use "
            "its aggregator, fc.aggregators.total(), whose sum is divided by the cohort's expected size"
        )
    leaving = [e for e, exchange in enumerate(algorithm.exchanges) if exchange.update is not None]
    if len(leaving) > 1:
        yield (
            f"{algorithm.name} sends {len(leaving)} reports a round, each of which tells something, and the account of {name!r} has "
            "one: use an algorithm of one exchange, or one that is silent but for one"
        )
    statistics = algorithm.task.statistics
    if statistics.names and not statistics.personal:
        yield (
            f"the task of {algorithm.name} sends running statistics of BatchNorm ({', '.join(statistics.names)}), in which a client's "
            "examples meet, and noise would make variances negative: use GroupNorm or LayerNorm, or statistics='personal' under fedper"
        )
    for e in leaving:
        yield from _of_a_report(algorithm, uplink, reports[e], e)


def _of_a_report(algorithm: Algorithm, uplink: Stage, report: Report, e: int) -> Iterator[str]:
    """Yields what leaves beside the update of exchange `e` without noise."""
    name, place = uplink.name, uplink.promises.at
    if algorithm.exchanges[e].slots > 1:
        yield (
            f"clients of {algorithm.name} name the slot of their report, which leaves without the noise of {name!r}: use an algorithm "
            "of one model, such as fedavg"
        )
    for what, given in (("stats", report.stats), ("metrics", report.metrics)):
        if given and not (what == "metrics" and getattr(uplink.promises.account, "open_metrics", False)):
            yield (
                f"{algorithm.name} reports the {what} {', '.join(given)}, which leave without the noise of {name!r}: use an algorithm "
                f"without {what}, or compute them where the data are"
            )
    server = jax.eval_shape(lambda key: algorithm.init(algorithm.init_params(key)), keys.shape())
    if place == "server" and (read := _read(algorithm.exchanges[e], server, report)):
        yield (
            f"the server of {algorithm.name} goes by {' and '.join(read)}, which {'is' if len(read) == 1 else 'are'} known without the "
            f"noise of {name!r}: use an algorithm whose server goes by the value alone, such as fedavg"
        )
    if (
        place == "client"
        and not getattr(uplink.promises.account, "open_counts", False)
        and weighs(algorithm, server, e)[0]
    ):
        yield (
            f"{algorithm.name} weighs its reports by a client's examples or steps, which leave without the noise of {name!r}: give "
            "weighting=fc.algorithms.uniform"
        )


def _read(exchange: Exchange, server: Any, report: Report) -> list[str]:
    """The fields of an `Aggregate` that the server's update depends on, besides its value and key."""
    update = exchange.update
    assert update is not None
    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    row: Any = jax.ShapeDtypeStruct((1,), jnp.float32)
    stats = {name: jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for name, x in report.stats.items()}
    each = Each(stats, row, jax.ShapeDtypeStruct((1,), jnp.int32)) if stats else None  # type: ignore[arg-type]
    value = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), report.update)
    key = keys.shape()

    def after(weight: Any, clients: Any, each: Any, server: Any, value: Any, key: Any) -> Any:
        return update(server, Aggregate(value, weight, clients, key, each))

    used = tree.depends(after, number, number, each, server, value, key)
    names = [
        "the sum of the weights",
        "the number of clients",
        *(["each client's stats"] * len(jax.tree.leaves(each))),
    ]
    return list(dict.fromkeys(name for name, there in zip(names, used, strict=False) if there))


def weighs(algorithm: Algorithm, server: Any, e: int) -> tuple[bool, bool]:
    """(whether the weight of a report depends on the client's work or state, whether on the part of the
    message that is its own)."""
    exchange, key = algorithm.exchanges[e], keys.shape()
    number: Any = jax.ShapeDtypeStruct((), jnp.float32)
    own = jax.eval_shape(algorithm.init_client, jax.eval_shape(algorithm.init_params, key))
    message = jax.eval_shape(lambda server: message_of(exchange, server), server)
    carry = jax.eval_shape(exchange.client.begin, message, own, key)
    common, addressed = message if isinstance(message, Told) else (message, ())

    def weight(worked: tuple[Seen, Carry], addressed: Any, common: Message) -> Any:
        seen, carry = worked
        return exchange.client.finish(
            common if exchange.address is None else Told(common, addressed), carry, seen
        ).weight

    worked = Seen(number, number), carry
    used = tree.depends(weight, worked, addressed, common)
    of_work, of_told = len(jax.tree.leaves(worked)), len(jax.tree.leaves(addressed))
    return any(used[:of_work]), any(used[of_work : of_work + of_told])
