"""What an algorithm is: a server, and for each exchange of a round what it broadcasts, what a client does,
what it learns.

    server --broadcast--> message --begin/step.../finish--> Report --(uplink, aggregator)--> Aggregate --update--> server

Most algorithms have one exchange a round. Mime has two that cross the wire; IFCA has one in which clients
only look (`silent`: nothing goes up) and one in which they train. All are pure functions over pytrees, so
that a backend may vmap, scan, shard or send them."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_core import tree
from fedjax_core.metrics import Mean, Sum
from fedjax_core.settings import Settings
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch, Carry, Key, Message, Own, Params, Server, Update
from fedjax_core.work import TRAIN, Work


class Seen(NamedTuple):
    """What a client had to work on in one exchange, and what it did."""

    examples: (
        Array  # float32: all of the client's examples, however often it went through them, be it not once
    )
    # float32: the local steps that it did, fewer than asked for where its time was limited
    # (sites/site/time_limit.py)
    steps: Array


class Report(NamedTuple):
    """What a client brings back: an update and its weight for the aggregator, and what it keeps itself."""

    update: Update
    weight: Array  # float32 scalar >= 0
    own: Own
    # small numbers that the server sees client by client, past the stages: steps taken, a loss
    stats: Mapping[str, Array] = {}
    # what only `finish` knows; logged and summed like a step's, under other names
    metrics: Mapping[str, Mean | Sum] = {}
    slot: Array | int = 0  # which of the exchange's `slots` the update is for


class Each(NamedTuple):
    """What the server knows of each client of a cohort of K places, of which some may be empty.

    How many empty places there are, and in what order clients stand, is up to the backend: they must not
    matter."""

    stats: dict[str, Array]  # leaves [K, ...]; zeros where nobody reported
    weight: Array  # [K] float32; 0 where nobody reported
    position: Array  # [K] int32, in the population; its size N for an empty place


class Aggregate(NamedTuple):
    """What the server learns from one exchange."""

    value: Update
    """The reports as the aggregator and the uplink's stages made one of them; leaves [slots, ...] where the
    exchange has `slots`, [K, ...] where it asks for all reports."""
    weight: Array  # float32: sum of the weights
    clients: Array  # float32: how many clients are in it
    key: Key  # for the server's draws in this exchange of this round
    each: Each | None  # where reports have stats, or the exchange asks for all of them


class Told(NamedTuple):
    """What one client is told where the exchange has an `address`: what all are told, and what is for this
    one alone."""

    message: Message
    mine: Any


class Addressed(NamedTuple):
    """What the server sends in an exchange with an `address`: to all clients, and to each of K by itself."""

    message: Any
    rows: Any  # leaves [K, ...]


class Client(NamedTuple):
    """What one client does in one exchange; `Message` is a `Told` where the exchange has an `address`.

    Messages are shared by all clients, so nothing of them need go into the carry.
    """

    begin: Callable[[Message, Own, Key], Carry]
    step: Callable[[Message, Carry, Batch, Key], tuple[Carry, dict[str, Mean]]]
    finish: Callable[[Message, Carry, Seen], Report]


class Exchange(NamedTuple):
    """One trip from the server to the clients of a cohort and back."""

    broadcast: Callable[[Server], Message]
    client: Client
    update: Callable[[Server, Aggregate], Server] | None
    """None makes the exchange silent: clients change only what they keep, and no report leaves them."""
    work: Work = TRAIN
    """`TRAIN` follows the run's epochs or steps, `ONCE` takes each example once and as stored; or an amount
    of the exchange's own."""
    reports: Literal["any", "mean", "all"] = "any"
    """How reports may meet: by any rule; only as a weighted mean, where each fills in one part of several; or
    not at all, where the server needs every one of them (`fc.aggregators.stack`). `compose` refuses other
    aggregators."""
    slots: int = 1
    """Above 1, the aggregator makes so many values, each of the reports that named it in `Report.slot`."""
    address: Callable[[Server, Array], Any] | None = None
    """(server, positions [K] of clients) -> what each is told besides the message, leaves [K, ...]; `begin`,
    `step` and `finish` are then given `Told(message, mine)`. An empty place has the position N, and nobody
    reads its row. No stage of the downlink treats it, and real sites can read the rows of all."""


UNNAMED = "this algorithm"


class Algorithm(NamedTuple):
    """A client and the server around it."""

    task: Task
    init_params: Callable[[Key], Params]
    init: Callable[[Params], Server]  # the result has a field `params`, the global model
    init_client: Callable[[Params], Own]  # what a client keeps before its first round; () for nothing
    exchanges: tuple[Exchange, ...]
    personal: Callable[[Server, Own], Params] | None = None
    """The model a client would use; None: the global one."""
    population: int | None = None
    """Of how many clients it is, where its numbers depend on that; who runs it refuses another number."""
    name: str = UNNAMED
    """What errors, audit logs and reports call it; where it is not given, `compose` calls it like the
    function that made it."""
    settings: Settings = Settings()
    """What it was made with, by the names of the arguments."""


def named(algorithm: Algorithm) -> Algorithm:
    """The algorithm itself where it has a name; else under the name of the user's function in which its own
    were defined."""
    if algorithm.name != UNNAMED:
        return algorithm
    functions = [
        f for exchange in algorithm.exchanges for f in (*exchange.client, exchange.update, exchange.broadcast)
    ]
    for f in [algorithm.init, *functions]:
        made_in, inside, _ = getattr(f, "__qualname__", "").partition(".<locals>.")
        if inside and not str(f.__module__).startswith("fedjax_core."):
            return algorithm._replace(name=made_in)
    return algorithm


def told(message: Any, place: Array | int) -> Message:
    """What the client at this place of the cohort is told, of what a client listens to."""
    return (
        Told(message.message, tree.take(message.rows, jnp.asarray(place)))
        if isinstance(message, Addressed)
        else message
    )


def message_of(exchange: Exchange, server: Server) -> Message:
    """What the first client of a population is told, where no downlink treats it."""
    message = exchange.broadcast(server)
    if exchange.address is None:
        return message
    return told(Addressed(message, exchange.address(server, jnp.zeros(1, jnp.int32))), 0)


def check_report(report: Any, where: str) -> Report:
    """The report itself; raises TypeError where `where`, a client's finish, gave no Report, or one whose
    parts are no arrays."""
    if not isinstance(report, Report):
        raise TypeError(
            f"{where} must return a Report, got {type(report).__name__}: write Report(update, weight=seen.examples, own=own)"
        )
    weight: Any = report.weight
    if not (hasattr(weight, "dtype") or isinstance(weight, (int, float))):
        raise TypeError(
            f"{where} weighs its report by {report.weight!r}, which must be a number: seen.examples, or jnp.float32(1) to count all alike"
        )
    check_own(report.own, where)
    return report


def check_own(own: Own, where: str) -> Own:
    """What a client keeps, itself; raises TypeError where a leaf is no array, of which there could be none
    for each client."""
    for leaf in jax.tree.leaves(own):
        if not hasattr(leaf, "dtype"):
            way_out = (
                f"write jnp.asarray({leaf!r})"
                if isinstance(leaf, (bool, int, float))
                else "keep what it is in an array"
            )
            raise TypeError(
                f"{where} has a client keep {leaf!r}, a {type(leaf).__name__}, and it keeps arrays alone: {way_out}"
            )
    return own


def nothing(params: Params) -> Own:
    """`init_client` of an algorithm whose clients keep nothing."""
    return ()


def by_examples(seen: Seen) -> Array:
    """Weighs a report by the client's examples: the objective is the mean over all examples."""
    return seen.examples


def uniform(seen: Seen) -> Array:
    """Weighs all reports alike: the objective is the mean over clients."""
    return jnp.ones_like(seen.examples)


def gradient(task: Task, params: Params, batch: Batch, key: Key) -> tuple[Params, dict[str, Mean]]:
    """The gradient of the batch's mean loss, and the loss as a metric weighed by the examples in it."""
    value, grads = jax.value_and_grad(task.mean_loss)(params, batch, key)
    examples = jnp.sum(batch.mask)
    return grads, {"loss": Mean(value.astype(jnp.float32) * examples, examples)}
