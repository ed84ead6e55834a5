"""Old entries go where the log's owner says so, and what is left is proven as before; nobody else can take
any away."""

import os

import pytest

from fedjax_core.cli import main
from fedjax_core.sites import audit
from fedjax_core.sites.audit import Anchor, AuditError, Head, Log, files, head_of, retention, show, verify
from fedjax_core.sites.audit.retention import prune
from tests.sites.parties import CHARITE, MAYO

KEYS = [CHARITE.public]


def numbers(folder):
    return [entry.n for entry in show(folder)]


@pytest.fixture
def log(tmp_path, monkeypatch):
    """A log of ten entries in four files, at the times 0 to 9."""
    with Log(tmp_path / "log", CHARITE, file_bytes=1000) as found:
        with monkeypatch.context() as patch:
            for now in range(10):
                patch.setattr("time.time", lambda now=now: float(now))
                found.record("charite", "trained", round=now)
        yield found
    assert len(os.listdir(tmp_path / "log")) >= 2


@pytest.mark.meets(
    "164.316(b)(2)(i)", by="old entries move to an archive, and the chain is proven across both"
)
def test_what_is_left_is_proven_and_goes_on(log, tmp_path):
    head = log.head
    anchor = prune(log, before=5.0, archive=tmp_path / "old")
    assert anchor.head.n == 4 and anchor == Anchor.read(log.folder, KEYS)
    log.record("charite", "trained")
    assert (
        numbers(log.folder) == [5, 6, 7, 8, 9, 10, 11]
        and next(show(log.folder, what="pruned")).about["upto"] == 4
    )
    assert verify(log.folder, KEYS, head) == log.head
    assert verify(tmp_path / "old", KEYS, anchor.head) == anchor.head and numbers(tmp_path / "old") == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert prune(log, before=5.0) is None
    again = prune(log, before=8.0, archive=tmp_path / "old")
    assert numbers(tmp_path / "old") == list(range(8)) and verify(tmp_path / "old", KEYS) == again.head


def test_an_archive_may_begin_late(log, tmp_path):
    prune(log, before=3.0)
    anchor = prune(log, before=6.0, archive=tmp_path / "old")
    assert numbers(tmp_path / "old") == [3, 4, 5] and verify(tmp_path / "old", KEYS) == anchor.head


def test_the_last_entry_stays(log):
    last = log.head.n
    assert prune(log, before=1e12).head.n == last - 1
    assert numbers(log.folder) == [last, last + 1] and verify(log.folder, KEYS).n == last + 1


def test_more_cannot_be_taken_away_than_was_signed(log):
    old = head_of(log.folder)
    prune(log, before=5.0)
    path = files(log.folder)[0]
    kept = path.read_bytes()
    path.write_bytes(b"".join(kept.splitlines(keepends=True)[1:]))
    with pytest.raises(
        AuditError, match=r"is entry 6, and entry 5 should be there: entries 5 to 5 are missing"
    ):
        verify(log.folder, KEYS)
    path.write_bytes(kept)
    assert verify(log.folder, KEYS, old)
    audit.anchor_path(log.folder).unlink()
    with pytest.raises(AuditError, match="entries 0 to 4 are missing"):
        verify(log.folder, KEYS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.replace(b'"n":4', b'"n":5'), "is not signed with a key of those given"),
        (lambda raw: raw[:-9], "was edited or damaged: the anchor is not JSON"),
        (lambda raw: b"{}", "was edited or damaged: it is no anchor"),
    ],
)
def test_an_anchor_cannot_be_changed(log, change, said):
    prune(log, before=5.0)
    path = audit.anchor_path(log.folder)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(AuditError, match=said):
        verify(log.folder, KEYS)


def test_the_anchor_of_another_does_not_count(log):
    Anchor(head=head_of(log.folder), time=0.0, key=MAYO.public.fingerprint).write(log.folder, MAYO)
    with pytest.raises(AuditError, match="is not signed with a key of those given"):
        verify(log.folder, KEYS)


def test_an_anchor_that_names_another_line_is_found(log):
    Anchor(head=Head(4, "0" * 64), time=0.0, key=CHARITE.public.fingerprint).write(log.folder, CHARITE)
    with pytest.raises(AuditError, match="is entry 4, but not the one that the anchor names"):
        verify(log.folder, KEYS)
    Anchor(head=Head(400, "0" * 64), time=0.0, key=CHARITE.public.fingerprint).write(log.folder, CHARITE)
    with pytest.raises(AuditError, match="ends with entry 9, before entry 400, which the anchor names"):
        verify(log.folder, KEYS)


def test_a_head_from_before_the_removal_says_so(log):
    prune(log, before=5.0)
    with pytest.raises(
        AuditError, match="the exported head is entry 3, and the entries up to 4 were removed"
    ):
        verify(log.folder, KEYS, Head(3, "0" * 64))
    # which cannot be told any more
    assert verify(log.folder, KEYS, held={"mayo": [Head(3, "0" * 64)]}) == log.head
    with pytest.raises(
        AuditError, match="is anchored at entry 4, but not the one that the head that mayo holds names"
    ):
        verify(log.folder, KEYS, held={"mayo": [Head(4, "0" * 64)]})


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_removal_that_is_cut_short_loses_nothing(log, tmp_path, monkeypatch, calls):
    class Crash(Exception):
        pass

    done = 0
    real = retention.write_whole

    def crash(path, lines):
        nonlocal done
        if done == calls:
            raise Crash
        done += 1
        real(path, lines)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(retention, "write_whole", crash)
        prune(log, before=8.0, archive=tmp_path / "old")
    verify(log.folder, KEYS)
    log.record("charite", "trained")
    both = {*numbers(log.folder), *numbers(tmp_path / "old")}
    assert both == set(range(12))
    prune(log, before=8.0, archive=tmp_path / "old")
    assert numbers(tmp_path / "old") == list(range(8)) and numbers(log.folder)[0] == 8
    verify(log.folder, KEYS)
    verify(tmp_path / "old", KEYS)


def test_the_archive_of_another_log_is_refused(log, tmp_path):
    with Log(tmp_path / "old", CHARITE) as other:
        other.record("charite", "trained")
    with pytest.raises(AuditError, match="ends with entry 0 of another log"):
        prune(log, before=5.0, archive=tmp_path / "old")
    assert numbers(log.folder) == list(range(10)) and verify(log.folder, KEYS).n == 9


def test_a_log_that_does_not_verify_is_not_pruned(log):
    path = files(log.folder)[1]
    path.write_bytes(path.read_bytes().replace(b'"round":4', b'"round":7'))
    with pytest.raises(AuditError, match="was edited"):
        prune(log, before=5.0)
    assert not audit.anchor_path(log.folder).exists()


def test_the_command_prunes_and_verify_says_from_where(tmp_path, capsys, monkeypatch):
    CHARITE.save(tmp_path)
    with Log(tmp_path / "log", CHARITE) as log, monkeypatch.context() as patch:
        for year in (2001, 2002, 2003):
            patch.setattr("time.time", lambda year=year: (year - 1970) * 365.25 * 86400 + 1e6)
            log.record("charite", "trained")
    folder, key, pub = str(tmp_path / "log"), str(tmp_path / "charite.key"), str(tmp_path / "charite.pub")
    assert main(["audit", "prune", folder, "--key", key, "--before", "2002-06-01"]) == 0
    assert "the entries up to 1:" in capsys.readouterr().out
    assert main(["audit", "verify", folder, "--keys", pub]) == 0
    said = capsys.readouterr().out
    assert (
        "2 entries, none of which was changed" in said
        and "proven from entry 2 on: those before it were removed 20" in said
    )
    assert main(["audit", "prune", folder, "--key", key, "--before", "2002-06-01"]) == 0
    assert "no entry is older" in capsys.readouterr().out
    assert main(["audit", "prune", folder, "--key", key, "--before", "nonsense"]) == 1
