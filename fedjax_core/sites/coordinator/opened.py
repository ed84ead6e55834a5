"""`Opened`: the record of the sites in each opened secure sum, which may only be opened again for these.

    folder/run-opened.json     {"3/0": ["charite", "mayo", "oslo"]}     by round/exchange; written before the reveal

So a coordinator that was killed, or goes back to a checkpoint, asks exactly these sites again.

>>> opened = Opened(None)
>>> opened.add(3, 0, ["charite", "mayo", "oslo"])
>>> opened.of(3, 0), opened.of(4, 0)
(['charite', 'mayo', 'oslo'], None)
"""

import json
from collections.abc import Sequence
from pathlib import Path

from fedjax_core.files import make_folder, write_whole


class Opened:
    """The opened sums of one run."""

    def __init__(self, path: Path | None) -> None:
        """Raises ValueError if the file is damaged."""
        self._path = path
        self._all: dict[str, list[str]] = {}
        if path is not None and path.exists():
            try:
                self._all = {
                    str(where): [str(name) for name in names]
                    for where, names in json.loads(path.read_text()).items()
                }
            except (ValueError, TypeError, AttributeError):
                raise ValueError(
                    f"{path}, which has whose sums were opened, is damaged: restore its backup, or remove it"
                ) from None

    def of(self, number: int, e: int) -> list[str] | None:
        """The sites in the sum of this round and exchange; None if it was not opened."""
        return self._all.get(f"{number}/{e}")

    def add(self, number: int, e: int, names: Sequence[str], oldest: int | None = None) -> None:
        """Notes that the sum of these sites is about to be opened, and forgets rounds before `oldest`, which
        never come again."""
        if self.of(number, e) == list(names):
            return
        self._all[f"{number}/{e}"] = list(names)
        if oldest is not None:
            self._all = {
                where: them for where, them in self._all.items() if int(where.partition("/")[0]) >= oldest
            }
        if self._path is not None:
            make_folder(self._path.parent)
            write_whole(self._path, json.dumps(self._all))
