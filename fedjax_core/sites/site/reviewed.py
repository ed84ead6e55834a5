"""Checks that the code of a site's study has not changed since the site first took part in it.

A study's hash covers the files of every package whose functions it uses. But the study's own package may do
more when it is imported, such as change a library. So a site stores the digest of all its files, once for
each hash, in `code.json` in its folder, and starts only while they are the same.

>>> import tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     check_code(Path(folder), "email.message:Message", "3f9a")
...     sorted(path.name for path in Path(folder).iterdir())
['code.json']
"""

import json
from pathlib import Path

from fedjax_core import sources
from fedjax_core.files import make_folder, write_whole

NAME = "code.json"


def changed(folder: Path, study: str, hash: str) -> list[str]:
    """The packages of the study `module:function` whose files have changed under the same hash."""
    known, now = _read(folder / NAME).get(hash), _digests(study)
    return [] if known is None else [name for name in {**known, **now} if known.get(name) != now.get(name)]


def check_code(folder: Path, study: str, hash: str) -> None:
    """Stores the digests of the study's package for a new hash; raises ValueError if they have changed."""
    path = folder / NAME
    if odd := changed(folder, study, hash):
        raise ValueError(
            f"the installed files of {', '.join(odd)}, which {study} is made of, have changed under the same hash {hash}: "
            f"review them, and remove {path} where the change is meant"
        )
    known = _read(path)
    if hash not in known:
        make_folder(folder)
        write_whole(path, json.dumps(known | {hash: _digests(study)}, indent=1))


def _digests(study: str) -> dict[str, str]:
    return sources.digests([sources.root(study.partition(":")[0])])


def _read(path: Path) -> dict[str, dict[str, str]]:
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text())
        return {
            str(hash): {str(name): str(digest) for name, digest in each.items()}
            for hash, each in document.items()
        }
    except (ValueError, AttributeError):
        raise ValueError(
            f"{path}, the digests of the study's code, is damaged: review that code, and remove the file"
        ) from None
