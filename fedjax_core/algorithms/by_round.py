"""An algorithm with numbers that change from round to round, such as a learning rate that decays.

    build(round) -> Algorithm        round = 0, 1, 2, ... as a float32, counted by the server and sent to clients with the model

The algorithms here take a function of the round for most of their arguments (`scheduled`):

    fedavg(task, local=lambda round: optax.sgd(0.1 * 0.9**round))
    fedprox(task, mu=optax.linear_schedule(0.1, 0.0, 100), local=optax.sgd(0.1))
    fedavg(lambda round: task_with_dropout(0.5 * 0.9**round), local=optax.sgd(0.1))

A schedule inside a client's optimiser counts the client's steps, and begins anew at every client and in every
round; this one counts the rounds of the run. Rounds in which nobody reported do not count.

>>> import jax.numpy as jnp, optax
>>> from fedjax_core import models
>>> from fedjax_core.algorithms.fedavg import fedavg
>>> task, decay = models.linear(features=3), optax.exponential_decay(0.1, transition_steps=1, decay_rate=0.9)
>>> algorithm = by_round(lambda round: fedavg(task, local=optax.sgd(decay(round))))
>>> int(algorithm.init(task.init(None)).round)
0
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_core.algorithms.base import Aggregate, Algorithm, Client, Exchange, Report, Seen, Told
from fedjax_core.checks import takes
from fedjax_core.settings import Settings, arguments
from fedjax_core.types import Array, Batch, Carry, Key, Message, Own, Params, Server


class Counted(NamedTuple):
    """The server's state, and the number of rounds concluded."""

    inner: Server
    round: Array  # int32

    @property
    def params(self) -> Params:
        """The global model."""
        return self.inner.params


class Dated(NamedTuple):
    """A message with its round."""

    inner: Message
    round: Array  # float32


def by_round(build: Callable[[Any], Algorithm]) -> Algorithm:
    """The algorithm that is `build(round)` in each round; only numbers may depend on the round, not shapes or
    the structure of states."""
    first = build(0.0)
    if not isinstance(first, Algorithm):
        raise TypeError(
            f"by_round's build must return an Algorithm, got {type(first).__name__}: lambda round: fc.algorithms.fedavg(...)"
        )
    silent = [exchange.update is None for exchange in first.exchanges]
    last = max((e for e, quiet in enumerate(silent) if not quiet), default=-1)

    def exchange(e: int) -> Exchange:
        def now(message: Any) -> tuple[Client, Message]:
            """The client of this round, and its message."""
            dated, *addressed = message if isinstance(message, Told) else (message,)
            inner = Told(dated.inner, *addressed) if addressed else dated.inner
            return build(dated.round).exchanges[e].client, inner

        def broadcast(server: Counted) -> Dated:
            round = server.round.astype(jnp.float32)
            return Dated(build(round).exchanges[e].broadcast(server.inner), round)

        def begin(message: Dated, own: Own, key: Key) -> Carry:
            client, inner = now(message)
            return client.begin(inner, own, key)

        def step(message: Dated, carry: Carry, batch: Batch, key: Key) -> tuple[Carry, Any]:
            client, inner = now(message)
            return client.step(inner, carry, batch, key)

        def finish(message: Dated, carry: Carry, seen: Seen) -> Report:
            client, inner = now(message)
            return client.finish(inner, carry, seen)

        def update(server: Counted, reports: Aggregate) -> Counted:
            conclude = build(server.round.astype(jnp.float32)).exchanges[e].update
            assert conclude is not None
            return Counted(conclude(server.inner, reports), server.round + jnp.int32(e == last))

        def address(server: Counted, clients: Array) -> Any:
            of = build(server.round.astype(jnp.float32)).exchanges[e].address
            assert of is not None
            return of(server.inner, clients)

        return first.exchanges[e]._replace(
            broadcast=broadcast,
            client=Client(begin, step, finish),
            update=None if silent[e] else update,
            address=None if first.exchanges[e].address is None else address,
        )

    def personal(server: Counted, own: Own) -> Params:
        inner = build(server.round.astype(jnp.float32)).personal
        assert inner is not None
        return inner(server.inner, own)

    return first._replace(
        init=lambda params: Counted(first.init(params), jnp.int32(0)),
        exchanges=tuple(exchange(e) for e in range(len(first.exchanges))),
        personal=None if first.personal is None else personal,
        name=f"by_round({first.name})",
        settings=Settings(build=build),
    )


# Arguments of algorithms that are functions, and what these are called with.
_FUNCTIONS = {"weighting": ("seen",), "gradient": ("task", "params", "batch", "key")}


def scheduled(*names: str) -> Callable[[Callable[..., Algorithm]], Callable[..., Algorithm]]:
    """Lets the arguments of these names be functions of the round, and records the algorithm's name and
    settings.

    `algorithm(..., mu=f)` is then `by_round(lambda round: algorithm(..., mu=f(round)))`. An optax schedule is
    such a function where the argument is a number: `mu=optax.linear_schedule(0.1, 0.0, 100)`.
    """

    def decorate(algorithm: Callable[..., Algorithm]) -> Callable[..., Algorithm]:
        @functools.wraps(algorithm)
        def with_rounds(*args: Any, **kwargs: Any) -> Algorithm:
            given = arguments(algorithm, *args, **kwargs)
            for name, of in _FUNCTIONS.items():
                if given.get(name) is not None:
                    takes(name, given[name], *of)
            changing = {
                name: given[name] for name in names if name in given and _is_of_round(name, given[name])
            }
            if changing:
                made = by_round(
                    lambda round: algorithm(**given | {name: of(round) for name, of in changing.items()})
                )
            else:
                made = algorithm(*args, **kwargs)
            return made._replace(name=algorithm.__name__, settings=Settings(**given))

        return with_rounds

    return decorate


def _is_of_round(name: str, value: Any) -> bool:
    """Whether an argument is a function of the round; raises where it would take rounds for learning
    rates."""
    if hasattr(value, "update") or not callable(value):
        return False
    takes(name, value, "round")
    first = next(iter(inspect.signature(value).parameters), "")
    of_optax = str(getattr(value, "__module__", "")).partition(".")[0] == "optax"
    if first == "learning_rate" or (of_optax and hasattr(value(0.0), "update")):
        made = getattr(value, "__name__", repr(value))
        raise TypeError(f"{name}={made} makes an optimiser of a learning rate: write {name}=optax.sgd(0.1)")
    return True
