"""The interface of algorithms: a server, and for each exchange of a round the broadcast, the client's work,
and the server's update.

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
    """The work of a client in one exchange: its examples, and the steps that it took."""

    examples: Array  # float32: the client's number of examples, whatever the number of passes
    # float32: the local steps that it took, fewer than requested if its time was limited
    # (sites/site/time_limit.py)
    steps: Array


class Report(NamedTuple):
    """A client's report: an update and its weight for the aggregator, and the client's new state."""

    update: Update
    weight: Array  # float32 scalar >= 0
    own: Own
    # small numbers that the server sees client by client, without the stages: steps taken, a loss
    stats: Mapping[str, Array] = {}
    # metrics known only in `finish`; logged and summed like a step's, under other names
    metrics: Mapping[str, Mean | Sum] = {}
    slot: Array | int = 0  # which of the exchange's `slots` the update is for


class Each(NamedTuple):
    """The server's knowledge of the single clients of a cohort of K places, some of which may be empty.

    The backend decides the number of empty places and the order of clients: they must not matter."""

    stats: dict[str, Array]  # leaves [K, ...]; zeros where nobody reported
    weight: Array  # [K] float32; 0 where nobody reported
    position: Array  # [K] int32, in the population; its size N for an empty place


class Aggregate(NamedTuple):
    """The result of one exchange for the server."""

    value: Update
    """The aggregated reports, after the uplink's stages; leaves [slots, ...] if the exchange has `slots`, [K,
    ...] if it asks for all reports."""
    weight: Array  # float32: sum of the weights
    clients: Array  # float32: how many clients are in it
    key: Key  # for the server's draws in this exchange of this round
    each: Each | None  # where reports have stats, or the exchange asks for all of them


class Told(NamedTuple):
    """The message to one client in an exchange with an `address`: the part for all, and the part for this
    client alone."""

    message: Message
    mine: Any


class Addressed(NamedTuple):
    """The server's message in an exchange with an `address`: a part for all clients, and a row for each of
    K."""

    message: Any
    rows: Any  # leaves [K, ...]


class Client(NamedTuple):
    """A client's work in one exchange; `Message` is a `Told` if the exchange has an `address`.

    Messages are shared by all clients, so the carry need not hold any of them.
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
    """The amount of work: `TRAIN` follows the run's epochs or steps, `ONCE` takes each example once and as
    stored; or an amount of its own."""
    reports: Literal["any", "mean", "all"] = "any"
    """How reports may be aggregated: by any rule; only as a weighted mean, if each fills in one part of
    several; or not at all, if the server needs every one of them (`fc.aggregators.stack`). `compose` refuses
    other aggregators."""
    slots: int = 1
    """The number of aggregated values; above 1, each is made of the reports that name it in `Report.slot`."""
    address: Callable[[Server, Array], Any] | None = None
    """(server, positions [K] of clients) -> each client's own part of the message, leaves [K, ...]; `begin`,
    `step` and `finish` then get `Told(message, mine)`. An empty place has the position N, and nobody reads
    its row. The downlink's stages do not encode it, and real sites can read the rows of all."""


UNNAMED = "this algorithm"


class Algorithm(NamedTuple):
    """A client and the server around it."""

    task: Task
    init_params: Callable[[Key], Params]
    init: Callable[[Params], Server]  # the result has a field `params`, the global model
    init_client: Callable[[Params], Own]  # a client's state before its first round; () for none
    exchanges: tuple[Exchange, ...]
    personal: Callable[[Server, Own], Params] | None = None
    """The model that a client uses; None: the global one."""
    population: int | None = None
    """The number of clients, if its numbers depend on that; backends refuse another number."""
    name: str = UNNAMED
    """The name in errors, audit logs and reports; by default that of the function that made it
    (`compose`)."""
    settings: Settings = Settings()
    """The arguments that it was made with, by name."""


def named(algorithm: Algorithm) -> Algorithm:
    """The algorithm with a name: its own, or that of the user's function in which its functions were
    defined."""
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
    """The message to the client at this place of the cohort, from the message for all."""
    return (
        Told(message.message, tree.take(message.rows, jnp.asarray(place)))
        if isinstance(message, Addressed)
        else message
    )


def message_of(exchange: Exchange, server: Server) -> Message:
    """The message to the first client of a population, without a downlink."""
    message = exchange.broadcast(server)
    if exchange.address is None:
        return message
    return told(Addressed(message, exchange.address(server, jnp.zeros(1, jnp.int32))), 0)


def check_report(report: Any, where: str) -> Report:
    """The report, checked: raises TypeError where `where`, a client's finish, gave no Report, or one with
    parts that are not arrays."""
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
    """A client's state, checked: raises TypeError where a leaf is not an array, so that there could not be
    one for each client."""
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
    """The `init_client` of an algorithm whose clients keep nothing."""
    return ()


def by_examples(seen: Seen) -> Array:
    """Weighs a report by the client's examples: the objective is the mean over all examples."""
    return seen.examples


def uniform(seen: Seen) -> Array:
    """Weighs all reports alike: the objective is the mean over clients."""
    return jnp.ones_like(seen.examples)


def gradient(task: Task, params: Params, batch: Batch, key: Key) -> tuple[Params, dict[str, Mean]]:
    """(the gradient of the batch's mean loss, the loss as a metric weighted by the number of examples)."""
    value, grads = jax.value_and_grad(task.mean_loss)(params, batch, key)
    examples = jnp.sum(batch.mask)
    return grads, {"loss": Mean(value.astype(jnp.float32) * examples, examples)}
