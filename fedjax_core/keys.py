"""Randomness with an address: every key is derived from what it is for, never from what was drawn before.

    client = fold(key, CLIENT, round, id)          step t of exchange e = fold(client, STEP, e, t)

So nothing depends on the lane, the order, the worker or the machine that does the work, and any round can be
computed alone.

>>> import jax, numpy as np
>>> run = jax.random.key(0)
>>> a = step(client(run, 3, np.array([0, 17], np.uint32)), 0, 5)
>>> bool(a == step(client(run, 3, np.array([0, 17], np.uint32)), 0, 5))
True
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from fedjax_core.types import Array, Key

_CLIENT, _SERVER, _INIT, _BROADCAST, _AGGREGATE, _UPDATE, _SHARED, _PAIR = range(8)  # what a run's key is for
_MARK = "noise that protects examples"
_SAMPLED = "noise that protects examples of Poisson batches"
_STEP, _BEGIN, _ENCODE, _SECRET = range(4)  # what a client's key is for


def _fold(key: Key, *address: Array | int) -> Key:
    for part in address:
        key = jax.random.fold_in(key, part)
    return key


def check(key: Any, *, several: bool = False) -> None:
    """Raises TypeError unless this is one typed key, or an array of `several`."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or (key.shape and not several):
        got = f"{key.dtype}{list(key.shape)}" if isinstance(key, jax.core.Tracer) else repr(key)
        raise TypeError(f"key= must be one typed key, such as jax.random.key(0), got {got}")


def init(key: Key) -> Key:
    """The key for the first parameters."""
    return _fold(key, _INIT)


def server(key: Key, round: Array | int, exchange: int) -> Key:
    """The key for what the stages draw at the server in one exchange of a round (noise added to a sum)."""
    return _fold(key, _SERVER, round, exchange)


def broadcast(key: Key, round: Array | int, exchange: int) -> Key:
    """The key for what the server draws to encode its message of one exchange of a round."""
    return _fold(key, _BROADCAST, round, exchange)


def aggregate(key: Key, round: Array | int, exchange: int) -> Key:
    """The key for what an aggregator draws in one exchange of a round."""
    return _fold(key, _AGGREGATE, round, exchange)


def update(key: Key, round: Array | int, exchange: int) -> Key:
    """The key for what an algorithm's `update` draws at the server in one exchange of a round (a coin)."""
    return _fold(key, _UPDATE, round, exchange)


def shared(key: Key, round: Array | int, exchange: int) -> Key:
    """The key for what all clients of an exchange draw alike, and the server with them."""
    return _fold(key, _SHARED, round, exchange)


def pair(key: Key, round: Array | int, exchange: int, one: Array, other: Array) -> Key:
    """The key for what two clients, at these addresses ([2] uint32), draw alike in one exchange, in either
    order."""
    first = jnp.where(one[0] == other[0], one[1] < other[1], one[0] < other[0])
    low, high = jnp.where(first, one, other), jnp.where(first, other, one)
    return _fold(key, _PAIR, round, exchange, low[0], low[1], high[0], high[1])


def server_secret(key: Key, round: Array | int, exchange: int) -> Key:
    """The key for noise that the server adds, in a simulation; real coordinators draw it by a secret of their
    own."""
    return _fold(server(key, round, exchange), _SECRET)


def client(key: Key, round: Array | int, id: Array) -> Key:
    """The key for one client in one round; `id` is [2] uint32, the client's address (`Clients.addresses`)."""
    return _fold(key, _CLIENT, round, id[0], id[1])


def begin(client_key: Key, exchange: int) -> Key:
    """The key for a client's beginning of an exchange."""
    return _fold(client_key, _BEGIN, exchange)


def step(client_key: Key, exchange: int, t: Array | int) -> Key:
    """The key for a client's local step `t` of an exchange."""
    return _fold(client_key, _STEP, exchange, t)


def encode(client_key: Key, exchange: int) -> Key:
    """The key for what a client draws to encode its report (stochastic rounding)."""
    return _fold(client_key, _ENCODE, exchange)


def secret(client_key: Key, exchange: int) -> Key:
    """The key for noise that a client adds, in a simulation; real sites draw it by a secret of their own."""
    return _fold(client_key, _SECRET, exchange)


def protecting(key: Key, sampled: bool = False) -> Key:
    """A local step's key, marked for noise that protects the client's examples; `sampled`: the promise counts
    on batches that are Poisson samples.

    The mark is in the step's jaxpr: a real site then draws all of the step by a secret of its own, a
    simulation by the run's key."""
    mark = _SAMPLED if sampled else _MARK
    return jax.random.wrap_key_data(
        checkpoint_name(jax.random.key_data(key), mark), impl=jax.random.key_impl(key)
    )


def protects(jaxpr: Any, sampled: bool = False) -> bool:
    """Whether a step with this jaxpr draws noise by a `protecting` key; with `sampled`, whether by one that
    counts on Poisson samples."""
    marks = {_SAMPLED} if sampled else {_MARK, _SAMPLED}
    return any(
        (eqn.primitive.name == "name" and eqn.params["name"] in marks)
        or any(protects(inner, sampled) for inner in _inner(list(eqn.params.values())))
        for eqn in jaxpr.eqns
    )


def _inner(value: Any) -> Iterator[Any]:
    """The jaxprs in an equation's parameters: the bodies of loops and branches."""
    if isinstance(value, (tuple, list)):
        for one in value:
            yield from _inner(one)
    elif isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        yield getattr(value, "jaxpr", value)


def shape() -> Key:
    """The shape and dtype of one key, for `jax.eval_shape`: nothing is drawn, and no device is asked."""
    return jax.eval_shape(lambda: jax.random.key(0))
