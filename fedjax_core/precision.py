"""Keeps a server's state in float32 beside a model of fewer bits, as momentum in 16 bits would be lost.

The model itself keeps its dtype, so clients are sent what they would be sent otherwise. The server computes
its update in float32, and casts the result once.

>>> import jax, optax
>>> from fedjax_core import Task, algorithms
>>> task = Task(lambda key: jax.numpy.zeros(3, "bfloat16"), lambda w, batch, key: batch["x"] @ w)
>>> algorithm = algorithms.fedavg(task, optax.sgd(0.1), server=optax.sgd(1.0, momentum=0.9))
>>> server = in_32_bits(algorithm).init(task.init(jax.random.key(0)))
>>> [str(leaf.dtype) for leaf in jax.tree.leaves(server)]
['bfloat16', 'float32']
"""

from typing import Any

import jax

from fedjax_core import keys, tree
from fedjax_core.algorithms.base import Aggregate, Algorithm, Exchange
from fedjax_core.types import Params, Server


def in_32_bits(algorithm: Algorithm) -> Algorithm:
    """The algorithm with a server that keeps all but the model in at least float32.

    The server's update is computed in float32, too, and its results are cast once. Clients are sent what they
    would be sent otherwise.
    """
    if not any(
        leaf is not wide
        for leaf, wide in _leaves_and_wide(jax.eval_shape(algorithm.init_params, keys.shape()))
    ):
        return algorithm

    def init(params: Params) -> Server:
        given = {id(leaf) for leaf in jax.tree.leaves(params)}  # the model itself keeps its dtype
        return jax.tree.map(
            lambda x, wide: x if id(x) in given else wide,
            algorithm.init(params),
            algorithm.init(tree.wide(params)),
        )

    def plain(server: Server) -> Server:
        """The server's state in the algorithm's own dtypes."""
        return tree.like(server, jax.eval_shape(algorithm.init, server.params))

    def exchange_of(exchange: Exchange) -> Exchange:
        conclude, address = exchange.update, exchange.address

        def update(server: Server, reports: Aggregate) -> Server:
            assert conclude is not None
            return tree.like(conclude(tree.wide(server), reports), server)

        return exchange._replace(
            address=None if address is None else lambda server, clients: address(plain(server), clients),
            broadcast=lambda server: exchange.broadcast(plain(server)),
            update=None if conclude is None else update,
        )

    personal = algorithm.personal
    return algorithm._replace(
        init=init,
        exchanges=tuple(exchange_of(exchange) for exchange in algorithm.exchanges),
        personal=None if personal is None else lambda server, own: personal(plain(server), own),
    )


def _leaves_and_wide(a: Any) -> list[tuple[Any, Any]]:
    return list(zip(jax.tree.leaves(a), jax.tree.leaves(tree.wide(a)), strict=True))
