"""The commands do what they say, and their exit codes tell."""

import math
import os
import subprocess
import sys
from statistics import NormalDist

import numpy as np
import pytest

from fedjax_core.cli import main
from fedjax_core.sites.audit import Log, files
from fedjax_core.sites.wire.envelope import Envelope, Header
from fedjax_core.sites.wire.identity import SiteKey, read_public


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
    assert (
        main(["certificates", "make", str(tmp_path), "charite=ray.charite.example,127.0.0.1", "--days", "30"])
        == 0
    )
    out = capsys.readouterr().out
    assert (
        "CN=charite (ray.charite.example, 127.0.0.1) until" in out
        and f"RAY_TLS_SERVER_KEY={tmp_path}/charite/node.key" in out
    )
    assert (
        main(["certificates", "show", str(tmp_path / "charite"), str(tmp_path / "authority" / "ca.crt")]) == 0
    )
    assert "29 days" in capsys.readouterr().out
    (tmp_path / "charite" / "node.key").chmod(0o644)
    assert main(["certificates", "show", str(tmp_path / "charite")]) == 1
    assert "node.key has mode 0644" in capsys.readouterr().err
    assert (
        main(["certificates", "make", str(tmp_path), "mayo"]) == 1 and "NAME=HOST" in capsys.readouterr().err
    )


def test_a_log_is_verified_with_keys_or_a_roster_and_a_head(site, capsys):
    assert main(["audit", "head", str(site / "logs")]) == 0
    head = capsys.readouterr().out.strip()
    roster = site / "roster.toml"
    roster.write_text("[keys]\n" + (site / "keys" / "charite.pub").read_text())
    for keys in (site / "keys" / "charite.pub", roster):
        assert main(["audit", "verify", str(site / "logs"), "--keys", str(keys), "--head", head]) == 0
        said = capsys.readouterr().out
        assert (
            "3 entries, all as they were written, and the exported head is among them." in said
            and f"head {head}" in said
        )
    assert main(["audit", "verify", str(site / "logs"), "--keys", str(roster)]) == 0
    said = capsys.readouterr().out
    assert (
        "as they were written" not in said
        and "Whether entries are missing at the end cannot be told by the log alone" in said
    )
    path = files(site / "logs")[0]
    path.write_bytes(path.read_bytes().rpartition(b'{"entry"')[0])
    assert main(["audit", "verify", str(site / "logs"), "--keys", str(roster)]) == 1
    assert "the head in its heads.json is entry 2: 1 entries were cut off" in capsys.readouterr().err
    (site / "logs" / "heads.json").unlink()
    assert main(["audit", "verify", str(site / "logs"), "--keys", str(roster)]) == 0
    assert main(["audit", "verify", str(site / "logs"), "--keys", str(roster), "--head", head]) == 1
    assert "1 entries were cut off" in capsys.readouterr().err
    assert main(["audit", "verify", str(site / "logs"), "--keys", str(roster), "--head", "nonsense"]) == 1


def test_a_log_is_verified_by_the_head_that_the_other_end_holds(site, capsys):
    key, keys, logs = SiteKey.make("coordinator"), site / "keys", site / "logs"
    key.save(keys)
    assert main(["audit", "head", str(logs)]) == 0
    head = capsys.readouterr().out.strip()
    with Log(site / "other", key) as log:
        log.record("mayo", "answered", about={"head.mayo": f"0:{'0' * 64}"})
        log.record("charite", "answered", run="heart-1", about={"head.charite": head})
        log.record("charite", "answered", run="of another log", about={"head.charite": f"1:{'0' * 64}"})
    assert (
        main(["audit", "head", str(site / "other"), "--of", "charite"]) == 0
        and capsys.readouterr().out.strip() == head
    )
    assert main(["audit", "head", str(site / "other"), "--of", "oslo"]) == 1
    both = [
        "--keys",
        str(keys / "charite.pub"),
        str(keys / "coordinator.pub"),
        "--held-by",
        str(site / "other"),
    ]
    assert main(["audit", "verify", str(logs), *both]) == 0
    assert (
        "all as they were written, and the head that coordinator holds (entry 2) is among them"
        in capsys.readouterr().out
    )
    assert (
        main(["audit", "verify", str(logs), both[0], both[1], *both[3:]]) == 1
        and "whose log" in capsys.readouterr().err
    )
    path = files(logs)[0]
    path.write_bytes(path.read_bytes().rpartition(b'{"entry"')[0])
    (logs / "heads.json").unlink()
    assert main(["audit", "verify", str(logs), *both]) == 1
    assert "the head that coordinator holds is entry 2: 1 entries were cut off" in capsys.readouterr().err


def test_the_entries_are_shown_in_a_table_once_they_are_proven(site, capsys):
    logs, keys = str(site / "logs"), ["--keys", str(site / "keys" / "charite.pub")]
    with Log(site / "logs", SiteKey.load(site / "keys" / "charite.key")) as log:
        header = Header(
            kind="update", run="heart-1", round=3, exchange=0, sender="charite", recipient="coordinator", sequence=1, created_unix_ms=1,
            config="ab", fields={"weight": 2.5, "data": "f00d"},
        )  # fmt: skip
        log.record_sent(Envelope(header, {"w": np.ones((2, 3), np.float32)}), 600, more={"epsilon": 1.23456})
    assert main(["audit", "show", logs, *keys, "--what", "left"]) == 0
    title, first, second = capsys.readouterr().out.splitlines()
    assert title.split() == [
        "entry",
        "when",
        "(UTC)",
        "who",
        "what",
        "run/round",
        "to",
        "numbers",
        "epsilon",
        "more",
    ]
    assert first.split()[2:] == ["charite", "left", "heart-1/1", "0"]
    shown = second.split()
    assert (
        shown[2:7] == ["charite", "left", "heart-1/3", "coordinator", "7"]
        and shown[7] == "1.235"
        and "weight=2.5" in shown
    )
    assert main(["audit", "show", logs, "--round", "2", "--who", "charite", "--run", "heart-1", "--raw"]) == 0
    said = capsys.readouterr()
    assert (
        said.out.startswith("2 20")
        and said.out.endswith('charite trained heart-1/2 {"bytes":8}\n')
        and "not verified" in said.err
    )
    path = files(site / "logs")[0]
    path.write_bytes(path.read_bytes().replace(b"heart-1", b"heart-2"))
    assert main(["audit", "show", logs, *keys]) == 1
    said = capsys.readouterr()
    assert not said.out and "line 1, was edited: its signature does not fit" in said.err


def test_the_module_is_the_command(site):
    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "fedjax_core", *args], capture_output=True, text=True, env=dict(os.environ)
        )

    assert run("audit", "head", str(site / "logs")).returncode == 0
    missing = run("audit", "head", str(site / "nothing"))
    assert (
        missing.returncode == 1
        and missing.stderr.startswith("fedjax-core: ")
        and "Traceback" not in missing.stderr
    )


@pytest.mark.parametrize("args", [[], ["keys"], ["audit", "verify", "x"], ["nonsense"]])
def test_what_is_not_understood_ends_with_two(args):
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2


def test_the_account_of_a_site_is_begun_once_and_shown_and_a_missing_one_is_not_made(tmp_path, capsys):
    (tmp_path / "policy.toml").write_text(
        'site = "charite"\n[leaving]\nclip = 1.0\nnoise = 4.0\ndelta = 1e-6\nepsilon = 8.0\n'
    )
    path = tmp_path / "site.toml"
    path.write_text('name = "charite"\npolicy = "policy.toml"\nfolder = "state"\naccount = "account"\n')
    assert main(["account", "show", str(path)]) == 1 and "there is none" in capsys.readouterr().err
    assert main(["account", "begin", str(path)]) == 0 and "nothing told so far" in capsys.readouterr().out
    assert main(["account", "show", str(path)]) == 0
    assert "an epsilon of 0 at delta 1e-06 told so far; up to 8 may be" in capsys.readouterr().out
    assert main(["account", "begin", str(path)]) == 1 and "is there already" in capsys.readouterr().err
    told = tmp_path / "account" / "told.json"
    told.write_text('{"told": 0.25, "last": {}}')
    assert main(["account", "show", str(path)]) == 0
    epsilon, mu, normal = float(capsys.readouterr().out.split()[3]), 0.5, NormalDist().cdf
    # of the Gaussian mechanism
    delta = normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(1e-6, rel=0.02)
    told.unlink()
    assert main(["account", "show", str(path)]) == 1
