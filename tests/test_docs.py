"""README.md and the pages of real sites speak of tests, commands, settings, codes and files that there
are."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import tomllib
from operator import attrgetter

import pytest

import fedjax_core as fc
from fedjax_core import sites
from fedjax_core.cli import main
from fedjax_core.sites import policy
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.doctor.checks import CHECKS
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.site_file import SiteFile
from tests.conftest import REPOSITORY

FILES = {path.name: path for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]}
PAGES = {name: path.read_text() for name, path in FILES.items()}
ALL = "\n".join(PAGES.values())
COMMANDS = sorted(
    {" ".join(code.split()) for code in re.findall(r"`(?:\.venv/bin/)?fedjax-core ([^`]+)`", ALL)}
)


def functions(path):
    return {
        node.name
        for node in ast.parse((REPOSITORY / path).read_text()).body
        if isinstance(node, ast.FunctionDef)
    }


def test_the_pages_are_there():
    assert set(FILES) == {
        "README.md",
        "coming-from.md",
        "compliance.md",
        "evaluation.md",
        "pieces.md",
        "privacy.md",
        "round.md",
        "sites.md",
        "sites-setup.md",
        "sites-privacy.md",
        "sites-runbook.md",
        "statistics.md",
        "zoo.md",
    }


def test_the_tests_that_they_name_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", ALL)
    assert len(named) > 50
    assert [
        (path, name)
        for path, name in named
        if not (REPOSITORY / path).exists() or (name and name not in functions(path))
    ] == []


def test_every_row_of_the_threat_model_names_a_test_and_what_does_not_hold_over_ray_says_so():
    table = PAGES["sites-privacy.md"].partition("## Threat model")[2]
    rows = [
        line
        for line in table.splitlines()
        if line.startswith("|") and not line.startswith(("|---", "| attacker |"))
    ]
    assert len(rows) > 40
    assert [
        row
        for row in rows
        if not re.fullmatch(r"(\| [^|]+ ){3}\| (`tests/[\w/]+\.py(::test_\w+)?`(, )?)+ \|", row)
    ] == []
    assert [
        row for row in rows if row.startswith("| a curious coordinator") and "not over Ray" not in row
    ] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_that_they_name_are_there_with_their_options(command, capsys):
    words = command.split()
    name = words[:1] if words[0] in ("doctor", "node", "release", "report", "watch") else words[:2]
    with pytest.raises(SystemExit) as end:
        main([*name, "--help"])
    said = capsys.readouterr().out
    assert end.value.code in (0, None) and " ".join(name) in said
    assert [word for word in words if word.startswith("--") and word not in said] == []


def test_the_settings_that_they_name_are_there():
    tables = {"tasks": policy.Tasks, "minimum": policy.Minimum, "leaving": policy.Leaving, "evaluation": policy.Evaluation,
              "caps": policy.Caps}  # fmt: skip
    for table, name in re.findall(rf"`({'|'.join(tables)})\.(\w+)", ALL):
        assert name in {field.name for field in dataclasses.fields(tables[table])}, (table, name)
    rules = {field.name for field in dataclasses.fields(Rules)}
    assert {name for name in re.findall(r"Rules[.(](\w+)", ALL)} <= rules
    federation = set(inspect.signature(fc.Federation).parameters)
    given = [
        re.findall(r"(\w+)=", code)
        for code in re.findall(r"`fc\.Federation\(([^`]*)\)`", re.sub(r"\w+\.\w+\([^()]*\)", "", ALL))
    ]
    assert given and {name for names in given for name in names} <= federation


def test_the_names_of_the_package_that_they_use_are_there():
    names = set(re.findall(r"\bfc((?:\.\w+)+)", ALL))
    assert len(names) > 30 and [name for name in sorted(names) if not there(fc, name[1:])] == []


def there(what, name):
    try:
        attrgetter(name)(what)
    except AttributeError:
        return False
    return True


def test_every_code_of_a_refusal_is_in_the_page_of_what_to_do():
    for module in pkgutil.walk_packages(sites.__path__, "fedjax_core.sites."):
        importlib.import_module(module.name)
    kinds = [Refused]
    for kind in kinds:
        kinds += kind.__subclasses__()
    ours = {kind.code for kind in kinds[1:] if kind.__module__.startswith("fedjax_core.")}
    rows = [line for line in PAGES["sites-runbook.md"].splitlines() if line.startswith("| ")]
    there = {code for row in rows for code in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    assert len(ours) > 50 and ours - there == {"declined"}  # of which there are two tables


def codes_of(path):
    """The codes of refusals in a module: of a `Decision(False, code, ...)`, the first of a tuple that is
    yielded, returned or named, or in brackets at the end of a raised message."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Yield(ast.Tuple([ast.Constant(str(code)), *_])) | ast.Return(
                ast.Tuple([ast.Constant(str(code)), *_])
            ):
                yield code
            case ast.Assign(_, ast.Tuple([ast.Constant(str(code)), _])) if re.fullmatch("[a-z-]+", code):
                yield code
            case ast.Call(ast.Name("Decision"), [ast.Constant(False), ast.Constant(str(code)), *_]):
                yield code
            case ast.Raise(ast.Call(_, [message, *_])):
                yield from re.findall(r"\[([a-z]+)\]['\"]$", ast.unparse(message))


def test_every_setting_by_which_a_site_declines_is_in_the_page_of_what_to_do():
    folder = REPOSITORY / "fedjax_core" / "sites" / "policy"
    codes = {
        code
        for name in ("policy.py", "tables.py", "answered.py", "enforcement.py")
        for code in codes_of(folder / name)
    }
    page = PAGES["sites-runbook.md"].partition("### What a site's policy says")[2].partition("###")[0]
    assert {
        "paused",
        "task",
        "per-class",
        "epsilon",
        "clip",
        "another-model",
        "untrained",
        "cell",
        "weight",
    } <= codes
    assert [
        code for code in sorted(codes - {"withdrawn"}) if f"`{code}`" not in page and f"[{code}]" not in page
    ] == []


def test_the_files_can_be_read(tmp_path):
    site, shown = re.findall(r"```toml\n(.*?)```", PAGES["sites-setup.md"], re.DOTALL)
    # with the settings that are shown behind a comment sign
    whole = re.sub(r"(?m)^( *)# (\w+ = )", r"\1\2", site)
    for name, text in (("site.toml", site), ("whole.toml", whole), ("policy.toml", shown)):
        (tmp_path / name).write_text(text)
    assert (
        SiteFile.read(tmp_path / "site.toml").name == Policy.read(tmp_path / "policy.toml").site == "charite"
    )
    every = SiteFile.read(tmp_path / "whole.toml")
    assert (every.labels, every.departments, every.person, every.held_out, every.left_gb) == (
        "y",
        "ward",
        "patient_id",
        "test",
        1.0,
    )
    assert set(tomllib.loads(shown)["leaving"]["fields"]) == {"weight", "examples", "data", "loss"}


def test_the_example_calls_what_there_is():
    examples = re.findall(r"```python\n(.*?)```", PAGES["sites-setup.md"], re.DOTALL)
    trees = [ast.parse(inspect.cleandoc(example)) for example in examples]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    ours = {
        ast.unparse(call.func): [word.arg for word in call.keywords]
        for call in calls
        if ast.unparse(call.func).startswith("fc.")
    }
    assert set(ours) == {
        "fc.Federation",
        "fc.fit",
        "fc.cohorts.everyone",
        "fc.stats.table_one",
        "fc.stats.histogram",
    }
    for name, given in ours.items():
        assert set(given) <= set(inspect.signature(attrgetter(name.partition(".")[2])(fc)).parameters), name


def test_what_the_doctor_looks_at_is_what_the_readme_says():
    row = next(
        line
        for line in PAGES["README.md"].splitlines()
        if line.startswith("| examine a site before it joins")
    )
    assert row.rpartition("`: ")[2].removesuffix(" |").split(", ") == list(CHECKS)


@pytest.mark.parametrize("page", FILES)
def test_what_it_links_to_is_there(page):
    for link in re.findall(r"\]\(([^)#]+)", PAGES[page]):
        assert (FILES[page].parent / link).exists(), link


def test_each_study_is_in_the_list_of_questions():
    page = (REPOSITORY / "experiments" / "README.md").read_text()
    head, _, studies = page.partition("\n## ")
    asked = re.findall(r"^## (.*)$", "## " + studies, re.MULTILINE)
    anchors = [re.sub(r"[^\w\- ]", "", question.lower()).replace(" ", "-") for question in asked]
    assert re.findall(r"^\| \[(.*)\]\(#(.*)\) \|", head, re.MULTILINE) == list(
        zip(asked, anchors, strict=True)
    )
