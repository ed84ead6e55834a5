"""Membership inference, which guesses whether a model was trained on a record: scores of two attacks, and
their evaluation.

    loss     score = -loss                                            Yeom et al., CSF 2018
    LiRA     score = log N(c; in) - log N(c; out),   c = -log(exp(loss) - 1)      Carlini et al., S&P 2022

`in` and `out` are normal distributions of c, the log-odds of the right answer where the loss is a
cross-entropy, over shadow models that were trained with the record and without. Each record has its own two
means; the two spreads are shared by all records, as few shadow models allow no more.

An attack is judged by its AUC, with the interval of Hanley and McNeil (Radiology 1982), and by the share of
members found at a fixed rate of false alarms, with that of Clopper and Pearson.

>>> found = judged(np.arange(10.0) + 5, np.arange(10.0), fpr=0.1)
>>> found.auc, found.tpr, [round(x, 2) for x in found.tpr_interval]
(0.875, 0.6, [0.26, 0.88])
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.stats import beta, norm

from fedjax_core.privacy.audit import auc

_LEAST_SPREAD = 1e-3


class Judged(NamedTuple):
    """The evaluation of an attack on members and others."""

    members: int
    others: int
    auc: float
    auc_interval: tuple[float, float]
    fpr: float
    """The largest share of others that is taken for members."""
    tpr: float
    tpr_interval: tuple[float, float]


def judged(members: np.ndarray, others: np.ndarray, fpr: float = 0.01, confidence: float = 0.95) -> Judged:
    """Judges scores [m] of members and [n] of others, higher for members. A threshold has at most the share
    `fpr` of others above it."""
    if not (len(members) and len(others)):
        raise ValueError(
            f"an attack is judged on members and on others: got {len(members)} and {len(others)}"
        )
    area, each = auc(members, others), (1 - confidence) / 2
    m, n = len(members), len(others)
    q, r = area / (2 - area), 2 * area**2 / (1 + area)
    spread = math.sqrt(
        max(0.0, area * (1 - area) + (m - 1) * (q - area**2) + (n - 1) * (r - area**2)) / (m * n)
    )
    wide = float(norm.ppf(1 - each)) * spread
    threshold = np.sort(others)[::-1][min(n - 1, math.floor(fpr * n + 1e-9))]
    hits = int(np.sum(members > threshold))
    low = float(beta.ppf(each, hits, m - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - each, hits + 1, m - hits)) if hits < m else 1.0
    return Judged(m, n, area, (max(0.0, area - wide), min(1.0, area + wide)), fpr, hits / m, (low, high))


def log_odds(losses: np.ndarray) -> np.ndarray:
    """The log-odds of the right answer, where the loss is its negative log-probability; within the range of
    float64."""
    wide = np.clip(np.asarray(losses, np.float64), 1e-12, 700.0)
    return np.asarray(-(wide + np.log(-np.expm1(-wide))))


def lira(losses: np.ndarray, shadows: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """[n] scores, from the losses [n] of the model and [S, n] of shadow models; `inside` [S, n] says which
    were trained on a record."""
    c, seen = log_odds(losses), log_odds(shadows)
    if not (inside.any(axis=0).all() and (~inside).any(axis=0).all()):
        raise ValueError(
            "each record has to be in one shadow model at least, and out of one: train more shadows"
        )

    def fitted(which: np.ndarray) -> tuple[np.ndarray, float]:
        count = which.sum(axis=0)
        mean = np.where(which, seen, 0).sum(axis=0) / count
        rest = np.where(which, (seen - mean) ** 2, 0).sum() / max(1, int((count - 1).sum()))
        return mean, max(math.sqrt(rest), _LEAST_SPREAD)

    (inner, near), (outer, far) = fitted(inside), fitted(~inside)
    return np.asarray(norm.logpdf(c, inner, near) - norm.logpdf(c, outer, far))
