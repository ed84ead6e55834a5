"""Keeps copies of the tensors that left a site, in the site's folder, each message under its SHA-256.

    folder/left/<SHA-256>.safetensors        of mode 0600, as all that a site writes

The audit log itself has all fields, and tensors that are small together (log.py). Larger ones are kept here,
up to `left_gb` GB of the site's file; the oldest are removed.

>>> import tempfile
>>> folder = tempfile.TemporaryDirectory()
>>> left = Left(Path(folder.name), most_bytes=10)
>>> [left.keep(digest, [b"1234", b"5"]) for digest in ("aa", "bb", "cc")]
[True, True, True]
>>> sorted(path.name for path in (Path(folder.name) / "left").iterdir())
['bb.safetensors', 'cc.safetensors']
>>> left.keep("dd", [b"12345678901"])
False
>>> folder.cleanup()
"""

from collections.abc import Sequence
from pathlib import Path

from fedjax_core.files import make_folder, write_whole
from fedjax_core.sites.wire.canonical import Bytes


class Left:
    """Keeps the tensors that leave one site, up to `most_bytes`; none without a folder."""

    def __init__(self, folder: Path | None, most_bytes: int) -> None:
        self.most_bytes = 0 if folder is None else most_bytes
        self._folder = None if folder is None else folder / "left"

    def keep(self, digest: str, body: Sequence[Bytes]) -> bool:
        """Writes a message's tensors to the disk; False if they alone exceed the limit."""
        size = sum(map(len, body))
        if self._folder is None or size > self.most_bytes:
            return False
        write_whole(make_folder(self._folder) / f"{digest}.safetensors", b"".join(body))
        every = sorted(
            self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns, reverse=True
        )
        total = 0
        for path in every:
            total += path.stat().st_size
            if total > self.most_bytes:
                path.unlink()
        return True
