"""The rules of a policy, each a function from numbers at the site to a finding: what was measured, the limit,
whether it holds.

A finding is evidence for whoever checks outputs at the site. It does not leave: how far a count is below the
minimum is itself a count.

>>> from fedjax_core.disclosure.policy import OutputPolicy
>>> dominance(np.array([90.0, 5.0, 5.0, 5.0, 5.0, 5.0]), OutputPolicy())[1]
Finding(rule='dominance p%', measured=20.0, limit=9.0, holds=True)
"""

from typing import NamedTuple

import numpy as np

from fedjax_core.disclosure.policy import OutputPolicy


class Finding(NamedTuple):
    """One rule, asked of one result."""

    rule: str
    measured: float
    limit: float
    holds: bool


def enough(rule: str, people: int, policy: OutputPolicy) -> Finding:
    """At least the minimum of people."""
    return Finding(rule, people, policy.minimum, people >= policy.minimum)


def each_enough(rule: str, counts: np.ndarray, policy: OutputPolicy) -> Finding:
    """At least the minimum of people in each; an empty one counts as too few unless the policy shows
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
    """How many parameters a fit may have, by share of people and by what is left of them."""
    return [
        Finding(
            "parameters per person", count, policy.parameters * people, count <= policy.parameters * people
        ),
        Finding(
            "residual degrees of freedom", people - count, policy.residual, people - count >= policy.residual
        ),
    ]


def levels(counts: np.ndarray, policy: OutputPolicy) -> list[Finding]:
    """How many levels a factor may have, and how many people each needs; `counts` are people of each
    level."""
    most = min(policy.levels, policy.level_share * float(np.sum(counts)))
    return [
        Finding("levels", len(counts), most, len(counts) <= most),
        each_enough("rare level", counts, policy),
    ]


def bins(counts: np.ndarray, policy: OutputPolicy) -> Finding:
    """How many bins a histogram may have; small bins are the table's matter."""
    most = policy.bin_share * float(np.sum(counts))
    return Finding("bins", len(counts), most, len(counts) <= most)
