"""The commands do what they say, and their exit codes tell."""

import os
import subprocess
import sys

import pytest

from fedjax_core.cli import main
from fedjax_core.sites.audit import Log, files
from fedjax_core.sites.identity import SiteKey, read_public


@pytest.fixture
def site(tmp_path, capsys):
    """A folder with a key and a log of three entries."""
    assert main(["keys", "make", "charite", "--folder", str(tmp_path / "keys")]) == 0
    with Log(tmp_path / "logs", SiteKey.load(tmp_path / "keys" / "charite.key")) as log:
        for round, what in ((1, "trained"), (1, "left"), (2, "trained")):
            log.record("charite", what, run="heart-1", round=round, about={"bytes": 8})
    capsys.readouterr()
    return tmp_path


def test_keys_are_made_once_and_shown(site, capsys):
    public = read_public(site / "keys" / "charite.pub")[1]
    for name in ("charite.pub", "charite.key"):
        assert main(["keys", "show", str(site / "keys" / name)]) == 0
        assert capsys.readouterr().out == f'charite = "{public.text}"\nfingerprint {public.fingerprint}\n'
    assert main(["keys", "make", "charite", "--folder", str(site / "keys")]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["keys", "make", "a/b"]) == 1 and "is not a name" in capsys.readouterr().err


def test_certificates_are_made_shown_and_checked(tmp_path, capsys):
    assert main(["certificates", "make", str(tmp_path), "charite=ray.charite.example,127.0.0.1", "--days", "30"]) == 0
    out = capsys.readouterr().out
    assert "CN=charite (ray.charite.example, 127.0.0.1) until" in out and f"RAY_TLS_SERVER_KEY={tmp_path}/charite/node.key" in out
    assert main(["certificates", "show", str(tmp_path / "charite"), str(tmp_path / "authority" / "ca.crt")]) == 0
    assert "29 days" in capsys.readouterr().out
    (tmp_path / "charite" / "node.key").chmod(0o644)
    assert main(["certificates", "show", str(tmp_path / "charite")]) == 1
    assert "node.key has mode 0644" in capsys.readouterr().err
    assert main(["certificates", "make", str(tmp_path), "mayo"]) == 1 and "NAME=HOST" in capsys.readouterr().err


def test_a_log_is_verified_with_keys_or_a_roster_and_a_head(site, capsys):
    assert main(["audit", "head", str(site / "logs")]) == 0
    head = capsys.readouterr().out.strip()
    roster = site / "roster.toml"
    roster.write_text("[keys]\n" + (site / "keys" / "charite.pub").read_text())
    for keys in (site / "keys" / "charite.pub", roster):
        assert main(["audit", "verify", str(site / "logs"), "--keys", str(keys), "--head", head]) == 0
        said = capsys.readouterr().out
        assert "3 entries, all as they were written, and the exported head is among them." in said and f"head {head}" in said
    path = files(site / "logs")[0]
    path.write_bytes(path.read_bytes().rpartition(b'{"entry"')[0])
    assert main(["audit", "verify", str(site / "logs"), "--keys", str(roster)]) == 0
    assert main(["audit", "verify", str(site / "logs"), "--keys", str(roster), "--head", head]) == 1
    assert "1 entries were cut off" in capsys.readouterr().err
    assert main(["audit", "verify", str(site / "logs"), "--keys", str(roster), "--head", "nonsense"]) == 1


def test_the_entries_are_shown(site, capsys):
    assert main(["audit", "show", str(site / "logs"), "--what", "left"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 1 and out[0].startswith("1 20") and out[0].endswith('charite left heart-1/1 {"bytes":8}')
    assert main(["audit", "show", str(site / "logs"), "--round", "2", "--who", "charite", "--run", "heart-1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_module_is_the_command(site):
    def run(*args):
        return subprocess.run([sys.executable, "-m", "fedjax_core", *args], capture_output=True, text=True, env=dict(os.environ))

    assert run("audit", "head", str(site / "logs")).returncode == 0
    missing = run("audit", "head", str(site / "nothing"))
    assert missing.returncode == 1 and missing.stderr.startswith("fedjax-core: ") and "Traceback" not in missing.stderr


@pytest.mark.parametrize("args", [[], ["keys"], ["audit", "verify", "x"], ["nonsense"]])
def test_what_is_not_understood_ends_with_two(args):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
