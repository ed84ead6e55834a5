"""docs/sites.md speaks of tests, commands and codes that there are."""

import re
import tomllib

import pytest

from fedjax_core.cli import main
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.site_file import SiteFile
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "sites.md").read_text()


def test_the_tests_that_it_names_are_there():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 10
    assert [name for path, name in named if f"def {name}" not in (REPOSITORY / path).read_text()] == []


@pytest.mark.parametrize("command", sorted(set(re.findall(r"fedjax-core ((?:keys|audit|certificates|consortium) \w+|doctor)", PAGE))))
def test_the_commands_that_it_names_are_there(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code in (0, None) and command in capsys.readouterr().out


def test_its_files_can_be_read(tmp_path):
    site, policy = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    for name, text in (("site.toml", site), ("policy.toml", policy)):
        (tmp_path / name).write_text(text)
    assert SiteFile.read(tmp_path / "site.toml").name == Policy.read(tmp_path / "policy.toml").site == "charite"
    assert set(tomllib.loads(policy)["leaving"]["fields"]) == {"weight", "examples", "data", "loss"}


def test_what_it_links_to_is_there():
    for link in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (REPOSITORY / "docs" / link).exists()
