"""`Expected`: the versions, columns and hashes that a study was made with, sent to sites as `expected.toml`.

python = "3.11"
study = "3f9a..."                       hash of the study
made = 1767225600.0                     when it was written, in seconds since 1970: no clock is before that
[packages]
jax = "0.10.2"
[columns]                               of the data: dtype and shape of one example
x = "float32[30]"
y = "int32[]"
[features]                              the names of the numbers in a row, if the data have them
x = ["age", "weight"]
[code]                                  digests of the files of the study's packages, and of fedjax_core's
heart = "77c1..."
[data]                                  fingerprints, where those of sites are agreed on
charite = "91d2..."
"""

import importlib.metadata
import json
import os
import platform
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedjax_core.files import read_text, write_whole
from fedjax_core.sites.study import Study
from fedjax_core.sources import digest

PACKAGES = (
    "fedjax-core",
    "jax",
    "jaxlib",
    "numpy",
    "optax",
    "flax",
    "safetensors",
    "msgspec",
    "cryptography",
    "PyNaCl",
    "ray",
)


@dataclass(frozen=True)
class Expected:
    """The versions, columns and hashes that a study was made with; empty where unknown."""

    python: str = ""
    study: str = ""
    made: float = 0.0
    packages: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, Sequence[str]] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(
        cls,
        study: Study | str,
        columns: Mapping[str, str],
        features: Mapping[str, Sequence[str]] | None = None,
    ) -> "Expected":
        """The `Expected` of this process, for a study, or for the hash of a study whose code is not here."""
        files = {} if isinstance(study, str) else code(study)
        hash = study if isinstance(study, str) else study.hash
        return cls(python(), hash, time.time(), packages(), columns, features or {}, files)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Expected":
        """Reads an expected.toml; raises ValueError if it is not one."""
        try:
            return cls(**tomllib.loads(read_text(path)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not what a coordinator sends with a study: {error}") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the expected.toml."""
        lines = [f'python = "{self.python}"', f'study = "{self.study}"', f"made = {self.made!r}"]
        for name in ("packages", "columns", "features", "code", "data"):
            table = {
                key: value if isinstance(value, str) else list(value)
                for key, value in getattr(self, name).items()
            }
            lines += [
                f"[{name}]",
                *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items()),
            ]
        write_whole(Path(path), "\n".join(lines) + "\n")


def code(study: Study) -> dict[str, str]:
    """{package: digest of its files} of the study's packages and of fedjax_core, as they are here."""
    return {**study.code, "fedjax_core": digest("fedjax_core")}


def packages() -> dict[str, str]:
    """The installed versions of the packages that a study's numbers and messages depend on."""
    return {name: version for name in PACKAGES if (version := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def python() -> str:
    """Python's version, major and minor."""
    return ".".join(platform.python_version_tuple()[:2])
