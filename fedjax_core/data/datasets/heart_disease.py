"""The UCI heart-disease records: 740 patients of four hospitals, split and scaled as in the benchmark FLamby.

Thirteen inputs a patient (age, sex, blood pressure, ...; chest pain and ECG one-hot), outcome: any narrowing
of a coronary artery. Columns that three hospitals hardly recorded (slope, ca, thal) are dropped, then
patients with a missing value. Each hospital keeps 66 % for training and scales with the mean and deviation of
its own training patients, so nothing but the model has to be shared. Switzerland's training patients are all
ill: no AUROC exists for it alone.

Janosi, Steinbrunn, Pfisterer, Detrano, "Heart Disease", UCI Machine Learning Repository, 1988 (CC BY 4.0). du
Terrail et al., "FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in Realistic Healthcare
Settings", NeurIPS 2022."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_core.data.clients import Clients
from fedjax_core.data.datasets.base import Remote, find

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
FEATURES = (
    *("age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak"),
    *("cp=2", "cp=3", "cp=4", "restecg=1", "restecg=2"),
)

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"
_FILES = [
    Remote(f"processed.{name}.data", f"{_UCI}processed.{name}.data", sha256, size)
    for name, sha256, size in (
        ("cleveland", "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8", 18461),
        ("hungarian", "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796", 10263),
        ("switzerland", "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314", 4109),
        ("va", "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f", 6737),
    )
]

_AS_THEY_ARE = [0, 1, 3, 4, 5, 7, 8, 9]  # columns of the file
_LEVELS = {2: (2.0, 3.0, 4.0), 6: (1.0, 2.0)}  # one-hot columns; the first level is the one left out
_OUTCOME = 13


class HeartDisease(NamedTuple):
    """Each population as `Clients` with columns x [n, 13] float32 and y [n] int32, in the order of the
    files."""

    train: Clients  # four hospitals
    test: Clients  # four hospitals, scaled with the statistics of their own training patients
    pooled_train: Clients  # one client, "pooled": all training patients, scaled together
    # one client, "pooled": all test patients, scaled with the statistics of all training patients
    pooled_test: Clients


def heart_disease() -> HeartDisease:
    """The four hospitals, training and test apart, each scaled by itself; and the same patients pooled and
    scaled together."""
    paths = find("heart_disease", _FILES)
    records = [read(paths[file.name]) for file in _FILES]
    parts = [split(y) for _, y in records]
    train = [(x[rows], y[rows]) for (x, y), (rows, _) in zip(records, parts, strict=True)]
    test = [(x[rows], y[rows]) for (x, y), (_, rows) in zip(records, parts, strict=True)]
    all_train, all_test = _join(train), _join(test)
    return HeartDisease(
        train=_clients([(scale(x, by=x), y) for x, y in train], HOSPITALS),
        test=_clients(
            [(scale(x, by=own), y) for (x, y), (own, _) in zip(test, train, strict=True)], HOSPITALS
        ),
        pooled_train=_clients([(scale(all_train[0], by=all_train[0]), all_train[1])], ["pooled"]),
        pooled_test=_clients([(scale(all_test[0], by=all_train[0]), all_test[1])], ["pooled"]),
    )


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The complete patients of one file: (x [n, 13] float64, not scaled; y [n], 1 for disease)."""
    rows = np.genfromtxt(path, delimiter=",", missing_values="?", filling_values=np.nan)
    used = rows[:, [*range(10), _OUTCOME]]  # without slope, ca, thal
    rows = rows[~np.isnan(used).any(axis=1)]
    one_hot = [rows[:, column] == level for column, levels in _LEVELS.items() for level in levels]
    x = np.column_stack([rows[:, _AS_THEY_ARE], *one_hot])
    return x, (rows[:, _OUTCOME] != 0).astype(np.int32)


def split(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (train, test) of one hospital in increasing order; by outcome where each has more than two
    patients."""
    # takes a second to import, and only those who ask need it
    from sklearn.model_selection import (
        train_test_split,
    )

    counts = np.unique(y, return_counts=True)[1]
    stratify = y if len(counts) > 1 and counts.min() > 2 else None
    train, test = train_test_split(
        np.arange(len(y)),
        train_size=0.66,
        test_size=1 - 0.66,
        random_state=43,
        shuffle=True,
        stratify=stratify,
    )
    return np.sort(train), np.sort(test)


def scale(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    """`x` with the mean and deviation of `by`, in float32; a column that is constant there becomes 0 where it
    has that value."""
    # Sums and quotients in float32, row after row: the benchmark's own inputs then come out bit for bit.
    mean = by.astype(np.float32).sum(axis=0) / np.float32(len(by))
    deviation = by.std(axis=0, ddof=1).astype(np.float32)
    scaled: np.ndarray = (x.astype(np.float32) - mean) / (deviation + np.float32(1e-9))
    return scaled


def _join(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def _clients(parts: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> Clients:
    return Clients.from_list([{"x": x, "y": y} for x, y in parts], ids=list(names))
