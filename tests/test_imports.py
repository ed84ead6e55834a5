"""Imports go one way, the heavy libraries have one home each, and what is public says what it is.

nouns -> algorithms, uplink, aggregators -> round, composition -> lanes | loops | cluster | sites -> run
"""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedjax_core
from tests.conftest import REPOSITORY

ROOT = Path(fedjax_core.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

NOUNS = {
    "types",
    "tree",
    "keys",
    "metrics",
    "evaluation",
    "task",
    "constants",
    "work",
    "lora",
    "describe",
    "places",
    "settings",
    "files",
    "sources",
    "machine",
    "checks",
    "one_by_one",
}
PIECES = {"algorithms", "uplink", "aggregators"}
BACKENDS = {"lanes", "loops", "cluster", "sites"}
ENGINE = NOUNS | {"round", "tallies", "composition", "partial", "buffer", "client_state", "data", "xla"}
ENGINE |= {"algorithms.base", "aggregators.base", "aggregators.slotted", "uplink.base"}
# What each part may import beside itself. A part not named here is one that nobody has placed yet, and the test
# says so.
ALLOWED = {
    **dict.fromkeys(NOUNS, NOUNS),
    **dict.fromkeys(PIECES | {"data", "models"}, NOUNS),
    # Its mechanisms are stages and aggregators, its samplers those of cohorts, and its audits compare models.
    "privacy": NOUNS
    | {
        "algorithms.base",
        "uplink.base",
        "uplink.clip",
        "uplink.secure",
        "aggregators.base",
        "aggregators.total",
        "data",
    },
    # Whole numbers modulo 2^32 are the same in a simulation's stage and in the protocol between sites.
    "uplink": NOUNS | {"secure_aggregation.ring"},
    "secure_aggregation": NOUNS,
    "state": NOUNS,
    "round": NOUNS | PIECES | {"state"},
    "compatibility": NOUNS | {"algorithms.base", "aggregators.base", "uplink.base"},
    "precision": NOUNS | {"algorithms.base"},
    "promises": NOUNS | {"algorithms.base", "aggregators.base", "uplink.base"},
    "downlink": NOUNS | {"algorithms.base", "uplink.base", "uplink.delta"},
    "composition": NOUNS | PIECES | {"round", "precision", "promises", "compatibility", "downlink"},
    "tallies": NOUNS | {"round", "uplink.base"},
    "attacks": NOUNS | {"round", "composition", "data", "algorithms.base", "aggregators.base", "uplink.base"},
    "partial": NOUNS | {"round", "downlink", "algorithms.base", "aggregators.base", "uplink.base"},
    "buffer": NOUNS | {"data"},
    "client_state": NOUNS | {"round", "data"},
    "xla": NOUNS | {"round"},
    # A backend sees an algorithm as the values of its base, and stages through the round: never one by name.
    "lanes": ENGINE,
    # A worker of a cluster is lanes, and so is a site with departments; plain loops check and evaluate as lanes do.
    **dict.fromkeys(("cluster", "loops"), ENGINE | {"lanes"}),
    # A site computes its sums of a statistic itself.
    "sites": ENGINE | {"lanes", "stats", "disclosure", "intake", "secure_aggregation"},
    # What it runs is a round of lanes, in which nothing is sent.
    "personalise": NOUNS | {"composition", "algorithms.base", "algorithms.local_training", "data", "lanes"},
    "newcomers": NOUNS | {"composition", "round", "downlink", "algorithms.base", "data", "lanes"},
    "knn_per": NOUNS | {"data"},
    # What a round of lanes shows of each client, joined again without some of them.
    "contribution": NOUNS | {"round", "lanes"},
    # The contracts compare lanes with plain loops.
    "contracts": NOUNS | {"round", "data", "lanes", "loops", "algorithms.base"},
    "run": NOUNS | {"round", "data", "xla", "privacy"},
    "clinical": NOUNS | {"data", "lanes", "stats.meta", "stats.histogram"},
    # Exact statistics: their site halves run where the data are, in one process or at sites.
    "stats": NOUNS | {"data"},
    # A field may be an expression over the site's columns, in the language of formulas; drift is from sums of all sites.
    "intake": NOUNS | {"data", "stats.expressions", "stats.table", "stats.describe", "stats.histogram"},
    "disclosure": NOUNS,
    # The gate attacks by runs of lanes, and the scores are those of audits.
    "release": NOUNS | {"data", "lanes", "privacy"},
    # It reads what a run and its sites' audit logs have written.
    "report": NOUNS | {"run", "sites"},
    # A whole deployment on one machine: it is to a hospital what a script is to a researcher.
    "consortium": NOUNS | PIECES | BACKENDS | {"data", "models", "round", "composition", "privacy", "run"},
    "cli": NOUNS
    | PIECES
    | BACKENDS
    | {
        "data",
        "models",
        "round",
        "composition",
        "privacy",
        "run",
        "consortium",
        "intake",
        "report",
        "release",
    },
    "__main__": {"cli"},
}
# The parts whose files implement the contract in their `base.py` and do not know one another.
NEIGHBOURS = PIECES | {"models"}
# What the files of such a part are made of, beside their `base.py`.
SHARED = {
    "algorithms.local_training",
    "algorithms.by_round",
    "algorithms.fedavg",
    "algorithms.low_rank",
    "aggregators.robust",
    "uplink.packed",
    "uplink.rotation",
}
# (file, neighbour it may import): each for a reason.
EXCEPTIONS = {
    (
        "algorithms.fedrep",
        "algorithms.fedper",
    ): "FedRep is FedPer that trains head and body one after the other",
    ("algorithms.lgfedavg", "algorithms.fedper"): "LG-FedAvg is FedPer with the other leaves kept",
    (
        "algorithms.feddane",
        "algorithms.fedlin",
    ): "FedDANE is FedLin with FedProx's pull towards where clients began",
    ("algorithms.feddane", "algorithms.fedprox"): "and that pull is FedProx's",
    ("algorithms.sparseloco", "algorithms.diloco"): "SparseLoCo is DiLoCo that sends less",
    ("algorithms.scaffold_one", "algorithms.scaffold"): "option I is option II with other control variates",
    ("models.from_flax", "models.batch_norm"): "which rows a module's BatchNorm counts is an idea of its own",
    ("models.from_flax", "models.modes"): "and so is how a module is told that it trains",
    ("models.cnn", "models.from_flax"): "the CNN is an ordinary Flax module",
    ("models.resnet", "models.from_flax"): "the ResNet is an ordinary Flax module",
    ("models.language", "models.from_flax"): "language models are ordinary Flax modules",
}
HOMES = {
    "ray": ("cluster", "sites.transport"),
    "orbax": ("run.checkpoint",),
    "flax": ("models",),
    "formulaic": ("stats.formula",),
}

ROW = re.compile(r"^\| `(\w+)` \| [^|]+ \|((?: `\w+`)*) \|$", re.MULTILINE)
# What each part of `sites` may import of the others, as the README tells it.
WINGS = {
    part: set(re.findall(r"\w+", row)) for part, row in ROW.findall((REPOSITORY / "README.md").read_text())
}


def name_of(file: Path) -> str:
    """`algorithms.fedavg` for fedjax_core/algorithms/fedavg.py, `algorithms` for its __init__.py, `` for the
    package's."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file: Path) -> Iterator[str]:
    """Absolute names of the modules a file imports, wherever in the file it does; of `from a import b`, `a.b`
    where that is a module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)} imports relatively: write the package's name"
            for alias in node.names:
                path = ROOT.joinpath(*(node.module or "").split(".")[1:], alias.name)
                yield (
                    f"{node.module}.{alias.name}"
                    if path.is_dir() or path.with_suffix(".py").is_file()
                    else str(node.module)
                )


def inside(name: str, parts: set[str] | tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(part + ".") for part in parts)


@pytest.mark.parametrize("file", [file for file in FILES if name_of(file)], ids=name_of)
def test_imports_go_one_way(file: Path):
    name = name_of(file)
    part = name.split(".")[0]
    assert part in ALLOWED, f"say in ALLOWED what {part} may import"
    for full in imports(file):
        if full.split(".")[0] != "fedjax_core":
            continue
        found = full.removeprefix("fedjax_core").removeprefix(".")
        assert found, f"{name} imports the package itself: import the module that it needs"
        if found.split(".")[0] != part:
            assert inside(found, ALLOWED[part]), f"{name} may not import {found}"
        elif part in NEIGHBOURS and not file.name.startswith("__init__"):
            allowed = found == f"{part}.base" or found in SHARED or (name, found) in EXCEPTIONS
            assert allowed, (
                f"{name} may not import its neighbour {found}: move what they share to {part}/base.py"
            )


def inner() -> dict[str, set[str]]:
    """{file: the files of the package that it imports}, under their names, for all files."""
    found = {name_of(file): {full.removeprefix("fedjax_core.") for full in imports(file)} for file in FILES}
    return {name: {one for one in these if one in found} for name, these in found.items()}


def test_the_parts_of_sites_import_what_the_readme_says_and_nothing_else():
    found: dict[str, set[str]] = {
        path.stem: set() for path in (ROOT / "sites").iterdir() if path.stem.strip("_") == path.stem
    }
    for name, these in inner().items():
        if name.startswith("sites."):
            part = name.split(".")[1]
            found[part] |= {one.split(".")[1] for one in these if one.startswith("sites.")} - {part}
    assert found == WINGS
    assert "site" not in WINGS["coordinator"] and "coordinator" not in WINGS["site"]


def test_no_files_import_one_another_in_a_circle():
    left = {name: these - {name} for name, these in inner().items()}
    while free := [name for name, these in left.items() if not these & left.keys()]:
        for name in free:
            del left[name]
    assert set(left) == set()


@pytest.mark.parametrize("library", HOMES)
def test_heavy_libraries_have_one_home(library: str):
    users = {name_of(file) for file in FILES if any(inside(full, (library,)) for full in imports(file))}
    assert {name for name in users if not inside(name, HOMES[library])} == set()


def test_no_file_is_called_utils():
    assert [
        name_of(file) for file in FILES if file.stem in {"utils", "util", "helpers", "misc", "common"}
    ] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: name_of(file) or "fedjax_core")
def test_what_is_public_has_a_docstring(file: Path):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), f"{file} needs a docstring that says its idea"
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if file.name == "__init__.py"],
    ids=lambda file: name_of(file) or "fedjax_core",
)
def test_public_names_resolve(file: Path):
    name = name_of(file)
    module = importlib.import_module(f"fedjax_core.{name}" if name else "fedjax_core")
    assert [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)] == []


def test_the_package_lists_its_names():
    assert fedjax_core.__all__


def test_a_process_begins_without_libraries_that_it_may_never_need():
    """scipy and Orbax alone are 2 s of a processor, which every worker, site and command would spend."""
    heavy = ("scipy", "orbax", "ray", "dp_accounting", "pandas", "matplotlib")
    found = f"import sys, fedjax_core as fc; print([name for name in {heavy} if name in sys.modules], fc.privacy.epsilon.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", found], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "epsilon"]
