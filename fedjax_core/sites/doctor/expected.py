"""What a study was made with: `expected.toml`, which the coordinator sends with the study, and which lies
beside a site's file.

python = "3.11"
study = "3f9a..."                       hash of the study
made = 1767225600.0                     seconds since 1970, when it was written: a clock before that is wrong
[packages]
jax = "0.10.2"
[columns]                               of the data: dtype and shape of one example
x = "float32[30]"
y = "int32[]"
[features]                              the names of the numbers in a row, where the data have them
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
    """What the study was made with; empty where nothing is said."""

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
        """What this process has, for a study, or for one of which it has the hash alone, and not the code."""
        files = {} if isinstance(study, str) else code(study)
        hash = study if isinstance(study, str) else study.hash
        return cls(python(), hash, time.time(), packages(), columns, features or {}, files)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Expected":
        """What an expected.toml says; raises ValueError where it is none."""
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
    """The versions of what a study's numbers and messages depend on, as installed here."""
    return {name: version for name in PACKAGES if (version := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def python() -> str:
    """The version of Python, as far as it matters."""
    return ".".join(platform.python_version_tuple()[:2])
