"""Ray's own files are closed to other users where `fedjax-core node` started it; nothing starts without token
and TLS."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fedjax_core.cli import main
from fedjax_core.files import open_to_others
from fedjax_core.sites.transport.ray_security import equip

SITE = 'name = "charite"\ndata = "data"\nfolder = "state"\nresources = { charite = 1.0 }\n'


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A site's file with the folder for Ray beside it; whatever is set in this process is put back."""
    for name in list(os.environ):
        if name.startswith("RAY_") or name == "FEDJAX_CORE_SITE":
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    equip(tmp_path, {"ray": ["127.0.0.1"]})
    (tmp_path / "site.toml").write_text(SITE)
    return tmp_path


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def test_what_cannot_be_is_said_before_anything_starts(site, capsys, tmp_path):
    file, address = str(site / "site.toml"), f"127.0.0.1:{free_port()}"
    for args in (
        [],
        [file],
        [file, "--head", "1"],
        ["--address", address],
        [file, "--address", address, "--head", "1"],
    ):
        assert main(["node", *args]) == 1 and "takes the site's file and --address" in capsys.readouterr().err
    assert (
        main(["node", "--head", "1", "--ray", str(site / "ray")]) == 1
        and "name a --folder" in capsys.readouterr().err
    )
    assert main(["node", file, "--address", address, "--folder", str(tmp_path / ("x" * 60))]) == 1
    assert "is too long for Ray, whose sockets are in it" in capsys.readouterr().err
    assert main(["node", file, "--address", address, "--folder", "/usr"]) == 1
    assert "other users can enter /usr" in capsys.readouterr().err
    (site / "ray" / "token").chmod(0o644)
    assert (
        main(["node", file, "--address", address]) == 1
        and "a token that is secret" in capsys.readouterr().err
    )
    assert main(["node", "--head", "1", "--ray", str(tmp_path), "--folder", str(tmp_path / "c")]) == 1
    assert "this Ray cluster lacks" in capsys.readouterr().err


@pytest.mark.slow
def test_rays_files_are_closed_to_other_users_and_it_ends_as_it_is_told(site):
    home = Path(tempfile.mkdtemp(prefix="fn")) / "r"  # of few letters, for sockets are in it
    command = [sys.executable, "-m", "fedjax_core", "node", "--head", str(free_port()), "--ip", "127.0.0.1"]
    with subprocess.Popen(
        [*command, "--ray", str(site / "ray"), "--folder", str(home)],
        stdout=subprocess.PIPE,
        text=True,
        umask=0o022,
    ) as process:
        assert process.stdout.readline().startswith("127.0.0.1:")
        assert home.stat().st_mode & 0o777 == 0o700 and not list(open_to_others(home))
        assert list(home.glob("t/session_*/sockets/raylet*"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    shutil.rmtree(home.parent)
