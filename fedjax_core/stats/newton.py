"""Newton's method on sums from sites, for a concave log-likelihood: exact, in a few rounds of one message a
site.

    beta <- beta + H^-1 g        g = sum of sites' gradients, H = sum of their information; a step that loses likelihood is halved

It also says why a model has no estimate: columns that depend on one another, or a likelihood that grows
without end."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_core.stats.base import Sums, total


class NoEstimate(ValueError):
    """The model has no finite estimate on these data; the message names the coefficient and the way out."""


class Maximum(NamedTuple):
    """The result of Newton's method: the estimates, and each site's sums there."""

    beta: np.ndarray  # [P]
    site_sums: list[Sums]
    sums: dict[str, np.ndarray]
    rounds: int


_MOST, _HALVINGS, _FAR = 100, 30, 30.0


def maximise(
    ask: Callable[[np.ndarray], list[Sums]], beta: np.ndarray, names: Sequence[str], what: str = "outcome"
) -> Maximum:
    """Maximises the log-likelihood. `ask(beta)` returns each site's sums "log_likelihood", "gradient" [P] and
    "information" [P, P], for columns of a size near 1.

    Raises `NoEstimate` where there is no maximum.
    """
    site_sums = ask(beta)
    sums, rounds = total(site_sums), 1
    check_independent(sums["information"], names)
    before = np.inf
    while rounds < _MOST:
        step = solve(sums["information"], sums["gradient"])
        size = float(np.abs(step).max(initial=0.0) / (1 + np.abs(beta).max(initial=0.0)))
        if size < 1e-11 or (size < 1e-8 and size > before / 10):  # smaller steps are rounding of the sums
            return Maximum(beta + step, site_sums, sums, rounds)
        before = size
        for _ in range(_HALVINGS):
            tried = ask(beta + step)
            after, rounds = total(tried), rounds + 1
            gain = float(after["log_likelihood"] - sums["log_likelihood"])
            slack = 1e-9 * (1 + abs(float(sums["log_likelihood"])))
            if np.isfinite(gain) and np.isfinite(after["information"]).all() and gain >= -slack:
                break
            step = step / 2
        else:
            _check_far(beta, names, what)
            raise NoEstimate(
                f"the likelihood does not grow along any step from {beta.tolist()}; look at the sizes of the columns"
            )
        grows = np.abs(step)
        if abs(gain) < 1e-6 and grows.max() > 0.1:
            _endless([name for name, by in zip(names, grows, strict=True) if by > 0.1 * grows.max()], what)
        beta, site_sums, sums = beta + step, tried, after
        if not (np.diag(sums["information"]) > 0).all():  # what is left of it is rounding
            break
    _check_far(beta, names, what)
    raise NoEstimate(
        f"no estimate after {_MOST} rounds; look for columns of very different sizes, or levels with few rows"
    )


def solve(information: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """information^-1 gradient, with columns scaled to one size before."""
    size = np.sqrt(np.maximum(np.diag(information), 1e-300))
    try:
        return np.linalg.solve(information / np.outer(size, size), gradient / size) / size
    except np.linalg.LinAlgError:
        raise NoEstimate(
            "the information about the coefficients is singular: columns depend on each other"
        ) from None


def inverse(information: np.ndarray) -> np.ndarray:
    """The symmetric inverse, with columns scaled to one size before."""
    size = np.sqrt(np.diag(information))
    inverted = np.linalg.inv(information / np.outer(size, size)) / np.outer(size, size)
    return (inverted + inverted.T) / 2


def check_independent(information: np.ndarray, names: Sequence[str]) -> None:
    """Raises `NoEstimate`, naming the columns, where one is a sum of others, or is 0 everywhere."""
    size = np.sqrt(np.diag(information))
    if not len(size):
        return
    if (nothing := np.flatnonzero(~(size > 0))).size:
        raise NoEstimate(
            f"{names[nothing[0]]!r} is the same in every row, so nothing can be said of it: take it out of the formula"
        )
    values, vectors = np.linalg.eigh(information / np.outer(size, size))
    if values[0] < 1e-11 * len(size):
        these = [name for name, part in zip(names, vectors[:, 0], strict=True) if abs(part) > 0.05]
        raise NoEstimate(
            f"{', '.join(map(repr, these))} depend on one another (one is made of the others): take one out of the formula"
        )


def _check_far(beta: np.ndarray, names: Sequence[str], what: str) -> None:
    """Raises `NoEstimate` for an effect so large (e^30 for a standard deviation) that only rounding stopped
    it."""
    far = np.abs(beta)
    if far.max(initial=0.0) > _FAR:
        _endless([name for name, by in zip(names, far, strict=True) if by > 0.1 * far.max()], what)


def _endless(names: Sequence[str], what: str) -> None:
    these = [name for name in names if name != "Intercept"] or list(names)
    raise NoEstimate(
        f"the estimate of {', '.join(map(repr, these[:8]))} grows without end: it separates the rows, as where all of a level have one "
        f"{what}. Take it out, put the level and another together, or leave these rows out; effects of sites go into strata or a random "
        "intercept"
    )
