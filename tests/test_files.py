"""What is written is for its owner alone, whatever the umask, and whole."""

import os
import stat

import numpy as np
import pytest

from fedjax_core.data.clients import Clients
from fedjax_core.files import close_to_others, make_folder, open_to_others, opener, write_whole


@pytest.fixture(params=[0, 0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    assert os.umask(before) == request.param  # which nothing changed


def modes(folder):
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in sorted(folder.rglob("*"))
    }


def test_files_and_folders_are_private_whatever_the_umask(tmp_path, umask):
    write_whole(make_folder(tmp_path / "a" / "b") / "whole", "text")
    with open(tmp_path / "a" / "log", "a", opener=opener) as file:
        file.write("line")
    assert modes(tmp_path) == {"a": 0o700, "a/b": 0o700, "a/b/whole": 0o600, "a/log": 0o600}


def test_a_folder_that_is_there_keeps_its_mode_and_a_file_is_private_when_written_again(tmp_path, umask):
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o755)
    for name in ("old", "old.new"):  # the second is what a process left that died
        (there / name).write_text("old")
        (there / name).chmod(0o644)
    write_whole(make_folder(there) / "old", "new")
    assert modes(tmp_path) == {"there": 0o755, "there/old": 0o600} and (there / "old").read_text() == "new"


def test_what_is_shared_is_as_the_umask_says(tmp_path, umask):
    write_whole(tmp_path / "shared", "text", private=False)
    assert modes(tmp_path) == {"shared": 0o666 & ~umask}


def test_saved_clients_are_private(tmp_path, umask):
    Clients.from_list([{"x": np.ones(3)}]).save(tmp_path / "made" / "data")
    found = modes(tmp_path)
    assert len(found) == 6 and {mode for name, mode in found.items() if "." not in name} == {0o700}
    assert {mode for name, mode in found.items() if "." in name} == {0o600}


def test_what_others_can_get_at_is_found_and_closed(tmp_path):
    for folder, mode in (("open", 0o755), ("closed", 0o700)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("text")
        (tmp_path / folder / "file").chmod(0o640)
        (tmp_path / folder).chmod(mode)
    (tmp_path / "open" / "link").symlink_to("/etc")
    found = [
        str(path.relative_to(tmp_path))
        for part in ("closed", "open")
        for path in open_to_others(tmp_path / part)
    ]
    assert found == ["open", "open/file"]
    close_to_others(tmp_path / "open")
    assert not list(open_to_others(tmp_path / "open")) and stat.S_IMODE(os.stat("/etc").st_mode) & 0o055
