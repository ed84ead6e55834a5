"""The rules of a policy, each a function from numbers at the site to a finding: what was measured, the limit,
whether it holds.

A finding is evidence for the person who checks outputs at the site. It does not leave, as the distance of a
count from the minimum is itself a count.

>>> from fedjax_core.disclosure.policy import OutputPolicy
>>> dominance(np.array([90.0, 5.0, 5.0, 5.0, 5.0, 5.0]), OutputPolicy())[1]
Finding(rule='dominance p%', measured=20.0, limit=9.0, holds=True)
"""

from typing import NamedTuple

import numpy as np

from fedjax_core.disclosure.policy import OutputPolicy


class Finding(NamedTuple):
    """One rule, applied to one result."""

    rule: str
    measured: float
    limit: float
    holds: bool


def enough(rule: str, people: int, policy: OutputPolicy) -> Finding:
    """Demands at least the minimum of people."""
    return Finding(rule, people, policy.minimum, people >= policy.minimum)


def each_enough(rule: str, counts: np.ndarray, policy: OutputPolicy) -> Finding:
    """Demands at least the minimum of people in each count; an empty one is too few unless the policy shows
    zeros."""
    counts = np.asarray(counts)
    checked = counts[counts > 0] if policy.zeros else counts
    least = int(checked.min()) if len(checked) else 0
    return Finding(rule, least, policy.minimum, least >= policy.minimum)


def dominance(contributions: np.ndarray, policy: OutputPolicy) -> list[Finding]:
    """NK and p % of a sum, from each person's contribution [n]; signs do not matter."""
    sizes = np.sort(np.abs(np.asarray(contributions, float)))[::-1]
    total, first = float(sizes.sum()), float(sizes[:1].sum())
    top = float(sizes[: policy.top].sum())
    rest, limit = float(sizes[2:].sum()), policy.p_percent / 100 * first
    return [
        Finding("dominance NK", top, policy.top_share * total, top <= policy.top_share * total),
        Finding("dominance p%", rest, limit, rest >= limit),
    ]


def parameters(count: int, people: int, policy: OutputPolicy) -> list[Finding]:
    """Limits the parameters of a fit, by their share of people and by the residual degrees of freedom."""
    return [
        Finding(
            "parameters per person", count, policy.parameters * people, count <= policy.parameters * people
        ),
        Finding(
            "residual degrees of freedom", people - count, policy.residual, people - count >= policy.residual
        ),
    ]


def levels(counts: np.ndarray, policy: OutputPolicy) -> list[Finding]:
    """Limits the levels of a factor, and demands enough people of each; `counts` are people of each level."""
    most = min(policy.levels, policy.level_share * float(np.sum(counts)))
    return [
        Finding("levels", len(counts), most, len(counts) <= most),
        each_enough("rare level", counts, policy),
    ]


def bins(counts: np.ndarray, policy: OutputPolicy) -> Finding:
    """Limits the bins of a histogram; small bins are left to the table."""
    most = policy.bin_share * float(np.sum(counts))
    return Finding("bins", len(counts), most, len(counts) <= most)
