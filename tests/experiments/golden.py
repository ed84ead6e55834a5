"""The strategies of the published benchmarks as plain loops in float64, which know nothing of the engine.

If both the loops and the engine agree with the stored weights, an error would have to be made three times.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

STEPS = 100  # mini-batches of a site in a round


class Study(NamedTuple):
    """First weights [P], the sites' examples, and the gradient of a mini-batch's mean loss at (w, x, y)."""

    init: np.ndarray
    x: list[np.ndarray]
    y: list[np.ndarray]
    gradient: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

    @property
    def shares(self) -> np.ndarray:
        """Each site's share of the examples, by which its model counts."""
        sizes = np.array([len(y) for y in self.y], float)
        return sizes / sizes.sum()

    def local_steps(
        self, i: int, w: np.ndarray, slots: np.ndarray, lr: float, extra=lambda w: 0.0
    ) -> np.ndarray:
        """Site i's weights after the mini-batches of `slots` [T, B] (-1: unused), from w."""
        for batch in slots:
            rows = batch[batch >= 0]
            w = w - lr * (self.gradient(w, self.x[i][rows], self.y[i][rows]) + extra(w))
        return w


@pytest.fixture(scope="module")
def heart_disease():
    """The script of the heart study, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "experiments")
        import heart_disease

        yield heart_disease


def read(path, sites: int) -> dict[str, np.ndarray]:
    """The stored arrays of so many sites; skips the test where they are not there."""
    if not path.is_file():
        pytest.skip(f"{path} is not there: put a copy of the golden trajectories into it")
    with np.load(path) as stored:
        golden = {name: stored[name] for name in stored.files}
    assert f"x_train_{sites - 1}" in golden and f"x_train_{sites}" not in golden
    return golden


def study_of(golden: dict[str, np.ndarray], sites: int, gradient) -> Study:
    """The stored examples and first weights, in float64."""
    x, y = ([golden[f"{name}_train_{i}"].astype(float) for i in range(sites)] for name in "xy")
    return Study(golden["init"].astype(float), x, y, gradient)


def averaging(
    study: Study, order: np.ndarray, rounds: int, lr: float, mu: float = 0.0, server=lambda d: d
) -> list[np.ndarray]:
    """The weights after each round of FedAvg, FedProx (`mu`) or an adaptive server; batches are `order`
    [sites, T, B]."""
    w, path = study.init, []
    for r in range(rounds):
        slots = order[:, r * STEPS : (r + 1) * STEPS]
        ends = [study.local_steps(i, w, slots[i], lr, lambda y, w=w: mu * (y - w)) for i in range(len(slots))]
        w = w + server(sum(share * (end - w) for share, end in zip(study.shares, ends, strict=True)))
        path.append(w)
    return path


def adaptive(lr: float, second, b1: float = 0.9, tau: float = 1e-8):
    """A server optimiser; `second(v, d^2)` is the next v."""
    m, v = 0.0, 0.0

    def server(d):
        nonlocal m, v
        m, v = b1 * m + (1 - b1) * d, second(v, d**2)
        return lr * m / (np.sqrt(v) + tau)

    return server


def adam(lr: float):
    """FedAdam's."""
    return adaptive(lr, lambda v, square: 0.999 * v + 0.001 * square)


def yogi(lr: float):
    """FedYogi's."""
    return adaptive(lr, lambda v, square: v - 0.001 * square * np.sign(v - square))


def adagrad(lr: float):
    """FedAdagrad's."""
    return adaptive(lr, lambda v, square: v + square)


def corrected(study: Study, order: np.ndarray, rounds: int, lr: float) -> list[np.ndarray]:
    """The weights after each round of SCAFFOLD as the benchmark writes it.

    A client's correction catches up, at the start of a round, with where the client ended the round before.
    """
    w, path, sites = study.init, [], range(len(order))
    corrections, ends = [np.zeros_like(w)] * len(order), [w] * len(order)
    for r in range(rounds):
        slots = order[:, r * STEPS : (r + 1) * STEPS]
        corrections = [c + (w - end) / (lr * STEPS) for c, end in zip(corrections, ends, strict=True)]
        ends = [study.local_steps(i, w, slots[i], lr, lambda _, c=corrections[i]: -c) for i in sites]
        w = sum(share * end for share, end in zip(study.shares, ends, strict=True))
        path.append(w)
    return path
