"""The rounds that a simulator runs at once, each on its part of one state: a single round, or those of a
sweep.

>>> import jax, optax
>>> from fedjax_core import algorithms, compose, models
>>> alone = Alone(compose(algorithms.fedavg(models.linear(features=2), local=optax.sgd(0.1))))
>>> alone.each(lambda round, state: (state, round.aggregator.name), "state")
('state', 'mean')
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from fedjax_core.round import Round, State
from fedjax_core.types import Key, Params

Run = Callable[[Round, State], tuple[State, Any]]
"""A function of a round and its state."""


class Runs(Protocol):
    """One or several rounds, run at once."""

    def init(self, key: Key, population: int, params: Params | None = None) -> State:
        """The state of all runs before the first round."""

    def each(self, run: Run, state: State) -> tuple[State, Any]:
        """Calls `run(round, state)` for each round, on its part of the state: (state, what else it gives)."""


class Alone(NamedTuple):
    """One round by itself."""

    round: Round

    def init(self, key: Key, population: int, params: Params | None = None) -> State:
        """The state before the first round."""
        return self.round.init(key, population, params)

    def each(self, run: Run, state: State) -> tuple[State, Any]:
        """Calls `run(round, state)`."""
        return run(self.round, state)
