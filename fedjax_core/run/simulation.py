"""What `fit` asks of whoever runs rounds: lanes, plain loops, a cluster or real sites.

It may as well be a class of your own around one of these, with the members of `Simulation` and no more. One
that mixes `state.clients.own` after each `run` does gossip, and `fit` logs, saves and resumes it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from fedjax_core.types import Key, Params


class Simulation(Protocol):
    """What every backend has."""

    @property
    def round(self) -> Any:
        """The `Round` that it runs."""

    @property
    def clients(self) -> Any:
        """Those whose positions a cohort names; has `len` and `fingerprint()`."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that changes the answer, to the last bit, besides round and clients: what a resumed run must
        have alike."""

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
    """What a backend may have besides. `fit` looks for each by its name, and does without where it is not
    there."""

    private: bool
    """Whether what a run writes is for its owner alone; without it, no."""

    judged_on: Literal["held-out", "trained on"]
    """On which examples of its clients it evaluates, to be said at the start."""

    @property
    def meter(self) -> Any:
        """Has `report()`, {name: number}: how fast it goes, for `History.speed`."""

    def reserve(self, cohort_size: int) -> None:
        """Called once before the first round with the largest cohort that is known of, so that buffers need
        not grow."""

    def score(self, state: Any, clients: Any) -> Mapping[str, np.ndarray]:
        """{metric: [n]} of the clients at these positions, for a sampler that chooses by them
        (`fedjax_core.data.cohorts.Chooser`)."""

    def lacked(self, round: int) -> Mapping[str, str]:
        """{client: why} of those who were to be in this round, numbered from 1, and were not: for the
        records."""

    def note(self, what: str, round: int, fields: Mapping[str, Any]) -> None:
        """Called with what becomes of a run between rounds: that it goes on from a checkpoint, and from
        which."""

    def needs(self, state: Any) -> Mapping[str, Any]:
        """What its clients must still have for a run to go on from this state, in plain values: saved with
        the checkpoint."""

    def retain(self, needs: Sequence[Mapping[str, Any]] | None) -> None:
        """Called with the `needs` of all states that the run may still go on from; None at its end, when
        nobody knows."""
