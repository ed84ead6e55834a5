"""The Wisconsin breast-cancer records that come with scikit-learn: 569 real patients, dealt to five made-up
hospitals.

Thirty measurements of cell nuclei in a needle biopsy; outcome 1 is a malignant tumour. The records name no
hospital, so they are dealt out by the table below: from 228 patients to 34, and from a quarter malignant (a
screening unit) to nearly six in ten (a cancer centre). The counts are fixed; the seed says only which patient
goes where.

Scaling uses the mean and deviation of all training patients together, from each hospital's count, sum and sum
of squares: three numbers a column that add up, which real hospitals could share as they share an update. Were
each hospital scaled by itself, the same tumour would be another input in a hospital with more malignant
cases, and one model could not be right in both.

Street, Wolberg, Mangasarian, "Nuclear feature extraction for breast tumor diagnosis", SPIE 1993 (CC BY 4.0).
"""

from typing import NamedTuple

import numpy as np

from fedjax_core.data.clients import Clients

HOSPITALS = {  # name: (patients, of them malignant); together the 569 and 212 of the records
    "university": (228, 80),
    "screening": (150, 37),
    "cancer centre": (97, 56),
    "district": (60, 25),
    "rural": (34, 14),
}
TRAIN_FRACTION = 0.6  # of each hospital and outcome: leaves the rural hospital 14 test patients


class BreastCancer(NamedTuple):
    """Each population as `Clients` with columns x [n, 30] float32 and y [n] int32."""

    train: Clients  # five hospitals
    test: Clients  # five hospitals
    pooled_train: Clients  # one client, "pooled": all training patients


def breast_cancer(seed: int = 0) -> BreastCancer:
    """Five hospitals of unequal size and case mix, training and test apart; the training patients also
    pooled."""
    # takes a second to import, and only those who ask need it
    from sklearn.datasets import (
        load_breast_cancer,
    )

    x, y = load_breast_cancer(return_X_y=True)
    y = (y == 0).astype(np.int32)  # scikit-learn codes malignant as 0
    train, test = deal(y, seed)
    mean, deviation = pooled_moments([x[rows] for rows in train])
    scaled = ((x - mean) / deviation).astype(np.float32)

    def clients(parts: list[np.ndarray], names: list[str]) -> Clients:
        return Clients.from_list([{"x": scaled[rows], "y": y[rows]} for rows in parts], ids=names)

    return BreastCancer(
        clients(train, list(HOSPITALS)),
        clients(test, list(HOSPITALS)),
        clients([np.concatenate(train)], ["pooled"]),
    )


def deal(y: np.ndarray, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Row numbers of each hospital's (training, test) patients, by the counts of `HOSPITALS`; every record is
    used once."""
    rng = np.random.default_rng(seed)
    waiting = {outcome: rng.permutation(np.flatnonzero(y == outcome)) for outcome in (0, 1)}
    train, test = [], []
    for patients, malignant in HOSPITALS.values():
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for outcome, count in ((0, patients - malignant), (1, malignant)):
            taken, waiting[outcome] = np.split(waiting[outcome], [count])
            for part, rows in zip(parts, np.split(taken, [round(TRAIN_FRACTION * count)]), strict=True):
                part.append(rows)
        train.append(rng.permutation(np.concatenate(parts[0])))
        test.append(np.sort(np.concatenate(parts[1])))
    return train, test


def pooled_moments(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [features] of all rows together, from what each part can sum up by itself."""
    count = sum(len(x) for x in parts)
    total, squares = sum(x.sum(axis=0) for x in parts), sum((x**2).sum(axis=0) for x in parts)
    mean = total / count
    return mean, np.sqrt(squares / count - mean**2)
