"""The interface of the backends that `fit` runs: lanes, plain loops, a cluster or real sites.

A backend may be a class of your own around one of these, with the members of `Simulation` only. One that
mixes `state.clients.own` after each `run` does gossip, and `fit` logs, saves and resumes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from fedjax_core.types import Key, Params


class Simulation(Protocol):
    """The members that every backend has."""

    @property
    def round(self) -> Any:
        """The `Round` that it runs."""

    @property
    def clients(self) -> Any:
        """The clients whose positions a cohort names; has `len` and `fingerprint()`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes the answer, to the last bit, besides round and clients: a resumed run must have
        the same."""

    def init(self, key: Key, params: Params | None = None) -> Any:
        """The state before the first round."""

    def run(self, state: Any, cohort: Any, *, donate: bool = False) -> tuple[Any, Mapping[str, Any]]:
        """One round: (state, metrics that add). With `donate` the state given is used up."""

    def run_many(
        self, state: Any, cohorts: Sequence[Any], *, donate: bool = False
    ) -> tuple[Any, Mapping[str, Any]]:
        """Several rounds: (state, metrics with leaves [R])."""

    def evaluate(self, state: Any, clients: Any = None) -> Any:
        """An `Evaluation`, by default on the clients trained on."""


class Extras(Protocol):
    """Optional members of a backend. `fit` looks for each by its name, and does without it if it is
    missing."""

    private: bool
    """Whether a run's files are for their owner alone; by default no."""

    judged_on: Literal["held-out", "trained on"]
    """The examples of its clients that it evaluates on, in words, for a message at the start."""

    @property
    def meter(self) -> Any:
        """An object with `report()`, {name: number}: the speed, for `History.speed`."""

    def reserve(self, cohort_size: int) -> None:
        """Called once before the first round with the largest cohort that is known of, so that buffers need
        not grow."""

    def score(self, state: Any, clients: Any) -> Mapping[str, np.ndarray]:
        """{metric: [n]} of the clients at these positions, for a sampler that chooses by them
        (`fedjax_core.data.cohorts.Chooser`)."""

    def lacked(self, round: int) -> Mapping[str, str]:
        """{client: why} of the clients missing from this round, numbered from 1: for the records."""

    def note(self, what: str, round: int, fields: Mapping[str, Any]) -> None:
        """Called with an event of a run between rounds: that it goes on from a checkpoint, and from which."""

    def needs(self, state: Any) -> Mapping[str, Any]:
        """What the clients must still have for a run to go on from this state, in plain values: saved with
        the checkpoint."""

    def retain(self, needs: Sequence[Mapping[str, Any]] | None) -> None:
        """Called with the `needs` of all states that the run may still go on from; None at its end, when that
        is not known."""
