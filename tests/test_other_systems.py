"""Files on systems as they are: other encodings, disks without locks, and secrets as containers are given
them."""

import errno
import fcntl
import os
import stat

import pytest

from fedjax_core import files
from fedjax_core.sites.doctor.expected import Expected
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.wire.identity import Roster, SiteKey, read_public

KEY = SiteKey.make("charite")
SETTINGS = {
    "site.toml": ('name = "charite"\ndata = "data"\n', SiteFile.read),
    "policy.toml": ('site = "charite"\n[tasks]\nmode = "first-use"\n', Policy.read),
    "roster.toml": (f"[keys]\n{KEY.line}\n", Roster.read),
    "expected.toml": ('study = "ab"\n', Expected.read),
    "charite.pub": (f"{KEY.line}\n", read_public),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_read_as_windows_editors_write_them_or_refused_by_their_encoding(name, tmp_path):
    text, read = SETTINGS[name]
    path = tmp_path / name
    path.write_text(text)
    plain = read(path)
    for raw in (b"\xef\xbb\xbf" + text.encode(), text.replace("\n", "\r\n").encode()):
        path.write_bytes(raw)
        assert read(path) == plain if name != "roster.toml" else read(path).keys == plain.keys
    for raw in (("# f\xfcr\n" + text).encode("latin-1"), text.encode("utf-16")):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=f"{name} is not text in UTF-8: save it"):
            read(path)


def test_paths_of_a_site_may_have_a_colon_a_tilde_and_any_letter(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "nas:export").mkdir()

    def found(data, more=""):
        (tmp_path / "site.toml").write_text(f'name = "charite"\ndata = "{data}"\n{more}', encoding="utf-8")
        return SiteFile.read(tmp_path / "site.toml")

    assert found("nas:export").data == tmp_path / "nas:export"
    assert found("2026-01-05T12:30").data == tmp_path / "2026-01-05T12:30"
    assert found("heart.data:rows").data == "heart.data:rows"
    assert found("~/data").data == tmp_path / "home" / "data"
    about = found("Klinik für Herz", 'folder = "~/federation"\nkey = "keys/charite.key"\n')
    assert about.data == tmp_path / "Klinik für Herz"
    assert about.folder == tmp_path / "home" / "federation" and about.key == tmp_path / "keys" / "charite.key"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(code, tmp_path, monkeypatch, caplog):
    def flock(descriptor, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with open(tmp_path / "lock", "w") as file:
        files.lock(file.fileno(), tmp_path)
    assert "has no locks" in caplog.text and str(tmp_path) in caplog.text


def test_a_lock_that_is_held_and_a_disk_that_fails_are_errors(tmp_path, monkeypatch):
    with open(tmp_path / "lock", "w") as one, open(tmp_path / "lock") as other:
        files.lock(one.fileno(), tmp_path)
        with pytest.raises(BlockingIOError):
            files.lock(other.fileno(), tmp_path)

    def failing(*arguments):
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(fcntl, "flock", failing)
    monkeypatch.setattr(os, "fsync", failing)
    with open(tmp_path / "lock") as file, pytest.raises(OSError, match="input/output"):
        files.lock(file.fileno(), tmp_path)
    with pytest.raises(OSError, match="input/output"):
        files.sync_folder(tmp_path)


def test_a_folder_that_cannot_be_synchronised_is_left(tmp_path, monkeypatch):
    asked = []

    def fsync(descriptor):
        asked.append(os.fstat(descriptor).st_ino)
        raise OSError(errno.EINVAL, "invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    files.sync_folder(tmp_path)
    assert asked == [tmp_path.stat().st_ino]


@pytest.mark.parametrize(
    ("mode", "owner", "group", "user", "taken"),
    [
        (0o600, 1000, 1000, 1000, True),
        (0o400, 1000, 1000, 1000, True),
        (0o440, 0, 1000, 1000, True),  # as Kubernetes gives a secret
        (0o440, 0, 50, 1000, False),
        (0o460, 0, 1000, 1000, False),
        (0o444, 0, 1000, 1000, False),
        (0o440, 1000, 1000, 1000, False),
        (0o777, 1000, 1000, 1000, False),  # as a Windows disk shows it
        (0o640, 0, 0, 0, False),
        (0o600, 2000, 1000, 1000, False),
    ],
)
def test_a_secret_is_read_where_only_its_user_or_root_could_have(
    mode, owner, group, user, taken, tmp_path, monkeypatch
):
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    about = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, group, 1, 0, 0, 0))
    for name, value in (("fstat", about), ("geteuid", user), ("getegid", user), ("getgroups", [user])):
        monkeypatch.setattr(os, name, lambda *_, value=value: value)
    if taken:
        assert files.read_private(path) == b"x"
    else:
        with pytest.raises(
            PermissionError,
            match=rf"mode {mode:04o} and owner {owner}: .* copy it to a disk .*install -m 600",
        ):
            files.read_private(path, "the key")
