"""`scripts/test.sh --since`: which slow tests run, in which order, and until when."""

import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest, long, slow

TESTS = {"lanes", "sites", "algorithms", "scripts", "run"}


def commit(repository, when, **files):
    """The hash of a commit of these files, made at this second."""
    for name, text in files.items():
        path = repository / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    slow.git(repository, "add", "-A")
    about = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    moment = {
        "GIT_COMMITTER_DATE": f"@{when} +0000",
        "GIT_AUTHOR_DATE": f"@{when} +0000",
        "PATH": "/usr/bin:/bin:/usr/local/bin",
    }
    subprocess.run(["git", *about, "commit", "-q", "-m", "x"], cwd=repository, env=moment, check=True)
    return slow.git(repository, "rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path):
    """Three commits: of long ago, of a day before the last, and of an hour before it; then a change that is
    in none."""
    made = tmp_path / "made"
    made.mkdir()
    slow.git(made, "init", "-q")
    last = 1_700_000_000
    commit(made, last - 9 * slow.DAY_SECONDS, fedjax_core__tree="1", fedjax_core__sites__wire="1")
    commit(made, last - slow.DAY_SECONDS, fedjax_core__run__fit="1")
    commit(made, last - 3600, fedjax_core__lanes__pack="1")
    (made / "fedjax_core/sites/wire").rename(made / "fedjax_core/sites/envelope")
    commit(made, last)
    (made / "fedjax_core/lanes/pack").write_text("2")
    return made


def test_what_changed_is_committed_or_not_and_has_the_old_names_of_what_moved(repository):
    moved = ["fedjax_core/lanes/pack", "fedjax_core/sites/envelope", "fedjax_core/sites/wire"]
    assert slow.changed_paths("HEAD~1", repository) == moved
    assert slow.changed_paths("yesterday", repository) == moved  # not what the commit of a day before brought
    assert "fedjax_core/run/fit" in slow.changed_paths("HEAD~3", repository)


def test_where_git_does_not_know_the_commit_nothing_is_known_to_be_unchanged(repository, tmp_path):
    assert slow.changed_paths("no-such-commit", repository) is None
    slow.git(tmp_path, "clone", "-q", "--depth", "2", f"file://{repository}", "shallow")
    assert slow.changed_paths("yesterday", tmp_path / "shallow") is None
    assert slow.changed_paths("HEAD~1", tmp_path / "shallow") is not None
    (tmp_path / "exported").mkdir()
    assert slow.changed_paths("yesterday", tmp_path / "exported") is None


def test_it_is_said_where_git_knows_nothing(tmp_path, monkeypatch):
    for name in ("lanes", "sites"):
        (tmp_path / "tests" / name).mkdir(parents=True)
    monkeypatch.setattr(conftest, "REPOSITORY", tmp_path)
    given = config(since="yesterday")
    conftest.pytest_configure(given)
    assert given.stash[conftest.FOLDERS] == {"lanes", "sites", slow.CONTRACTS}
    assert (
        "of all folders, as git does not know here what changed since yesterday"
        in conftest.pytest_report_header(given)
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("fedjax_core/sites/wire.py", {"sites"}),
        ("fedjax_core/sites/audit/log.py", {"sites"}),
        ("fedjax_core/lanes/pack.py", {"lanes", "contracts"}),
        ("fedjax_core/algorithms/fedavg.py", {"algorithms", "contracts"}),
        ("fedjax_core/tree.py", {"contracts"}),
        ("fedjax_core/cli.py", set()),
        ("tests/sites/wire/test_tensors.py", {"sites"}),
        ("tests/zoo.py", {"contracts"}),
        ("scripts/bench_links.py", {"scripts"}),
        ("pyproject.toml", {*TESTS, "contracts"}),
        ("docs/sites.md", set()),
        ("README.md", set()),
    ],
)
def test_whose_slow_tests_a_file_asks_for(path, expected):
    assert slow.folders([path], TESTS) == expected


def test_of_the_repository_itself(request):
    """Every folder of tests has files whose change asks for it."""
    tests = {
        path.name
        for path in (conftest.REPOSITORY / "tests").iterdir()
        if path.is_dir() and any(path.rglob("test_*.py"))
    }
    files = slow.git(conftest.REPOSITORY, "ls-files")
    if files is None:
        pytest.skip("this is no git repository")
    asked = slow.folders(
        (
            path
            for path in files.splitlines()
            if path not in slow.EVERYTHING and not path.startswith("tests/")
        ),
        tests,
    )
    assert asked == tests | {slow.CONTRACTS}
    assert slow.folder_of(Path(request.path), conftest.REPOSITORY) == "scripts"
    assert (
        slow.folder_of(conftest.REPOSITORY / "tests" / "test_docs.py", conftest.REPOSITORY) == slow.CONTRACTS
    )


class Item:
    """What pytest collects, as far as it is looked at."""

    def __init__(self, name, *marks):
        # as where the folder of all is called so
        self.path, self.keywords = (
            conftest.REPOSITORY / "tests" / name,
            {"slow"},
        )
        self.nodeid = f"tests/{name}::test"
        self.marks = [getattr(pytest.mark, mark).mark for mark in marks]

    def add_marker(self, mark):
        self.marks.append(mark)

    def get_closest_marker(self, name):
        return next((mark for mark in self.marks if mark.name == name), None)

    def says(self, name):
        return [mark.args or mark.kwargs.get("reason") for mark in self.marks if mark.name == name]


def config(folders=(), **options):
    """Settings in which these options were given and these folders changed."""
    stash = {conftest.STARTED: time.monotonic(), conftest.FOLDERS: set(folders)}
    return SimpleNamespace(getoption=lambda name: options.get(name.strip("-")), stash=stash)


def test_slow_tests_come_last_and_only_those_of_what_changed():
    items = [
        Item("sites/test_a.py", "slow"),
        Item("lanes/test_b.py"),
        Item("lanes/test_b.py", "slow"),
        Item("sites/test_a.py"),
    ]
    slow_site, quick_lane, slow_lane, quick_site = items
    conftest.pytest_collection_modifyitems(config({"lanes"}), items)
    assert items[:2] == [quick_lane, quick_site] and set(items[2:]) == {slow_site, slow_lane}
    assert slow_site.says("skip") and not any(
        item.says("skip") for item in (slow_lane, quick_lane, quick_site)
    )
    assert quick_lane.says("xdist_group") == [("tests/lanes/test_b",)]
    assert slow_lane.says("xdist_group") == [("tests/lanes/test_b",), ("slow",)]
    items = [Item("sites/test_a.py", "slow")]
    conftest.pytest_collection_modifyitems(config(slow=True), items)
    assert not items[0].says("skip")


def test_long_tests_run_when_asked_for_and_where_slow_ones_do(monkeypatch):
    monkeypatch.setattr(slow, "long_tests", lambda: frozenset({"tests/sites/test_a.py::test"}))
    for given, left_out in (
        (config(), True),
        (config({"sites"}), False),
        (config(long=True), False),
        (config(slow=True), False),
    ):
        items = [Item("sites/test_a.py"), Item("sites/test_b.py")]
        conftest.pytest_collection_modifyitems(given, items)
        assert [bool(item.says("skip")) for item in items] == [left_out, False]


def test_long_tests_are_tests():
    """A name that moved would run by default again."""
    functions = {long.function_and_case(test)[0].partition("::")[::2] for test in slow.long_tests()}
    texts = {path: (conftest.REPOSITORY / path).read_text() for path in {path for path, _ in functions}}
    assert [
        (path, name) for path, name in functions if f"def {name.split('::')[-1]}(" not in texts[path]
    ] == []


def test_of_a_zoo_entry_all_tests_are_long_or_none():
    costs = {
        f"tests/test_contracts.py::{test}[{entry}]": 9.0
        for test in ("test_a", "test_b")
        for entry in ("fedavg", "mime")
    }
    costs["tests/test_contracts.py::test_b[mime]"] = 0.1
    assert long.chosen(costs) == {
        "tests/test_contracts.py::test_a[mime]",
        "tests/test_contracts.py::test_b[mime]",
    }


def test_no_slow_test_begins_once_its_time_is_over():
    late = config(**{"slow-minutes": 10.0})
    for since, left_out in ((9, False), (11, True)):
        late.stash[conftest.STARTED] = time.monotonic() - 60 * since
        quick, dear = Item("lanes/test_b.py"), Item("lanes/test_b.py", "slow")
        quick.config = dear.config = late
        conftest.pytest_runtest_setup(quick)
        if not left_out:
            conftest.pytest_runtest_setup(dear)
            continue
        with pytest.raises(pytest.skip.Exception, match="no time left"):
            conftest.pytest_runtest_setup(dear)
