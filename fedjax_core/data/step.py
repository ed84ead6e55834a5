"""The interface of a preprocessing step: what one does to one column, from sums that all clients give.

sums_i = step.sums(x_i)  ─►  merge, in the clients' order  ─►  parameters = step.finalize(...)
at each client:  step.apply(x_i, parameters)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

Folder = str | Path | None

Sums = Mapping[str, np.ndarray]
"""A client's sums of a column, or the parameters of a step that are made of all clients': named arrays."""


class Step(Protocol):
    """A preprocessing step of one column. All methods are pure; up to rounding, `merge` does not depend on
    how clients are grouped."""

    @property
    def column(self) -> str: ...
    @property
    def releases(self) -> tuple[str, ...]: ...  # names under which a site's policy lets the sums leave
    # Leaves out what is known of fewer than `min_cell` examples.
    def sums(self, x: np.ndarray, min_cell: int) -> Sums: ...
    def merge(self, a: Sums, b: Sums) -> Sums: ...
    # What is wrong with sums that were sent, in words; None: nothing.
    def validate(self, sums: Sums, examples: int) -> str | None: ...
    def finalize(self, sums: Sums) -> Sums: ...
    # Writes the result of a large memory-mapped column to the folder.
    def apply(self, x: np.ndarray, parameters: Sums, folder: Folder = None) -> np.ndarray: ...
