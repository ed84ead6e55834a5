"""No entry can be changed, removed, moved or cut off without `verify` saying where; a crash costs the entry
that was being written."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest

from fedjax_core.sites.audit import NOTHING, AuditError, Head, Log, files, head_of, held_by, show, verify
from fedjax_core.sites.audit.held import Heads, Held
from tests.sites.parties import CHARITE, MAYO, TENSORS, envelope, message

KEYS = [CHARITE.public]


def write(folder, entries=6, key=CHARITE, **rest):
    with Log(folder, key, **rest) as log:
        for i in range(entries):
            log.record("charite", "trained", run="heart-1", round=i, about={"examples": 303, "norm": 1.5})
        return log.head


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def folder(tmp_path):
    """A log of ten entries in several files."""
    write(tmp_path, 10, file_bytes=1000)
    assert len(files(tmp_path)) == 4
    return tmp_path


def test_a_log_verifies_and_goes_on_where_it_was(tmp_path):
    first = write(tmp_path)
    assert verify(tmp_path, KEYS) == first == head_of(tmp_path) == Head.parse(f" {first}\n") and first.n == 5
    second = write(tmp_path)
    assert verify(tmp_path, KEYS, head=first) == second and second.n == 11
    assert [entry.n for entry in show(tmp_path)] == list(range(12))


@pytest.mark.meets("164.316(b)(2)(i)", by="logs of many files, in one chain")
def test_files_follow_one_another_without_a_break(folder):
    assert verify(folder, KEYS).n == 9
    assert [path.name for path in files(folder)] == [f"audit-{i:06d}.jsonl" for i in range(1, 5)]
    write(folder, 1)
    assert verify(folder, KEYS).n == 10 and len(files(folder)) == 4


def test_every_changed_byte_is_found(tmp_path):
    write(tmp_path, 2)
    path, head = files(tmp_path)[0], head_of(tmp_path)
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :])
        with pytest.raises(AuditError, match=f"{path}, line [12], "):
            verify(tmp_path, KEYS, head)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda old: old[:2] + old[3:], r"line 3, is entry 3, and entry 2 should be there: entries 2 to 2 are missing"),
        (lambda old: old[1:], r"line 1, is entry 1, and entry 0 should be there: entries 0 to 0 are missing"),
        (lambda old: [old[0], old[2], old[1], *old[3:]], r"line 2, is entry 2, and entry 1 should be there"),
        (lambda old: [*old[:3], old[2], *old[3:]], r"line 4, is entry 2, and entry 3 should be there: an entry was moved or repeated"),
        (lambda old: old[:-2], r"ends with entry 3, but the exported head is entry 5: 2 entries were cut off"),
        (lambda old: [], r"ends with entry -1, but the exported head is entry 5"),
        (lambda old: [*old[:-1], old[-1][:50]], r"line 6, has no end: a crash tore it, or it was cut"),
        (lambda old: [old[0].replace(b"303", b"304"), *old[1:]], r"line 1, was edited: its signature does not fit entry 0"),
        (lambda old: [old[0].replace(b'{"entry"', b'{ "entry"'), *old[1:]], r"line 1, was edited or damaged: the line is not in canonical"),
        (lambda old: [old[0][:-2] + b',"x":1}\n', *old[1:]], r"line 1, was edited or damaged: it is no entry"),
        (lambda old: [old[0].replace(b'"n":0', b'"m":0'), *old[1:]], r"line 1, was edited or damaged: it is no entry"),
        (lambda old: [b"\n", *old], r"line 1, was edited or damaged: the line is not JSON"),
        (lambda old: [b"7\n", *old], r"line 1, was edited or damaged: it is no entry"),
        (lambda old: [*old, b"\0" * 10], r"line 7, has no end"),
    ],
)  # fmt: skip
@pytest.mark.meets("164.312(b)", by="a signed hash chain: an entry that is edited, removed or moved is found")
def test_each_way_of_changing_a_log_is_found(tmp_path, change, said):
    head = write(tmp_path)
    path = files(tmp_path)[0]
    path.write_bytes(b"".join(change(lines(path))))
    with pytest.raises(AuditError, match=said):
        verify(tmp_path, KEYS, head)


def test_an_entry_out_of_another_log_of_the_same_key_is_found(tmp_path):
    write(tmp_path / "log")
    write(tmp_path / "other")
    path = files(tmp_path / "log")[0]
    own, other = lines(path), lines(files(tmp_path / "other")[0])
    path.write_bytes(b"".join([*own[:2], other[2], *own[3:]]))  # signed, and of the right number
    with pytest.raises(
        AuditError,
        match="line 3, does not follow from the entry before it, number 1, which was replaced by another",
    ):
        verify(tmp_path / "log", KEYS)


def test_changed_files_are_found(folder):
    first, second, third, last = files(folder)
    kept = {path: path.read_bytes() for path in files(folder)}
    head = head_of(folder)
    for path, said in (
        (first, "entries 0 to 2 are missing"),
        (second, "entries 3 to 5 are missing"),
        (last, "1 entries were cut off"),
    ):
        path.unlink()
        with pytest.raises(AuditError, match=said):
            verify(folder, KEYS, head)
        path.write_bytes(kept[path])
    second.write_bytes(kept[third])
    third.write_bytes(kept[second])
    with pytest.raises(
        AuditError, match=r"audit-000002.jsonl, line 1, is entry 6, and entry 3 should be there"
    ):
        verify(folder, KEYS, head)


@pytest.mark.meets("164.312(b)", by="heads that the other end holds, so that a log written anew is found")
def test_a_log_written_anew_with_the_right_key_is_found_by_an_exported_head(tmp_path):
    head = write(tmp_path / "old")
    write(tmp_path / "new", 12)
    assert verify(tmp_path / "new", KEYS).n == 11
    with pytest.raises(
        AuditError,
        match="line 6, is entry 5, but not the one that the exported head names: the log was written anew",
    ):
        verify(tmp_path / "new", KEYS, head)


def test_an_entry_of_another_log_does_not_follow(tmp_path):
    for name in ("one", "two"):
        write(tmp_path / name)
    one, two = (files(tmp_path / name)[0] for name in ("one", "two"))
    one.write_bytes(b"".join([*lines(one)[:3], *lines(two)[3:]]))
    with pytest.raises(
        AuditError, match="line 4, does not follow from the entry before it, number 2, which was replaced"
    ):
        verify(tmp_path / "one", KEYS)


def test_the_keys_of_others_do_not_count(tmp_path):
    write(tmp_path)
    with pytest.raises(AuditError, match=r"line 1, is signed with the key .* which is not among those given"):
        verify(tmp_path, [MAYO.public])
    with pytest.raises(AuditError, match="line 6, is signed with the key"), Log(tmp_path, MAYO):
        pass


def test_a_log_goes_on_with_a_new_key(tmp_path):
    write(tmp_path, 2)
    write(tmp_path, 2, key=MAYO, former=KEYS)
    assert verify(tmp_path, [MAYO.public, *KEYS]).n == 3


def crash(folder, entries, keep, **rest):
    """Writes entries, of which a crash tears the last before it is known to be on the disk, so that so many
    bytes of it are there."""
    write(folder, entries - 1, **rest)
    heads = (folder / "heads.json").read_bytes()
    write(folder, 1, **rest)
    (folder / "heads.json").write_bytes(heads)
    path = files(folder)[-1]
    *whole, last = lines(path)
    path.write_bytes(b"".join(whole) + last[:keep])
    return path, len(last[:keep])


@pytest.mark.parametrize("keep", [1, 2, 50, -2, -1])
def test_a_torn_last_line_is_cut_off_and_recorded(tmp_path, keep):
    path, size = crash(tmp_path, 3, keep)
    head = write(tmp_path, 1)
    found = list(show(tmp_path))
    assert verify(tmp_path, KEYS) == head and [entry.what for entry in found] == [
        "trained",
        "trained",
        "recovered",
        "trained",
    ]
    assert found[2].about["file"] == path.name and found[2].about["bytes"] == size


def test_a_file_of_which_only_a_torn_line_was_written_is_recovered_too(tmp_path):
    crash(tmp_path, 10, 9, file_bytes=1000)
    assert files(tmp_path)[-1].read_bytes() == b'{"entry":'
    write(tmp_path, 1, file_bytes=1000)
    assert [entry.what for entry in show(tmp_path)][-2:] == ["recovered", "trained"] and verify(
        tmp_path, KEYS
    ).n == 10


def test_a_torn_line_in_an_older_file_is_no_crash_and_stays(folder):
    second, last = files(folder)[1], files(folder)[-1]
    before = second.read_bytes()[:-5]
    second.write_bytes(before)
    last.write_bytes(b"".join(lines(last)[:-1]) + b'{"entry":')
    write(folder, 1)
    assert second.read_bytes() == before
    with pytest.raises(AuditError, match=r"audit-000002.jsonl, line 3, has no end"):
        verify(folder, KEYS)


def test_a_damaged_last_line_is_not_built_upon(tmp_path):
    write(tmp_path, 2)
    path = files(tmp_path)[0]
    path.write_bytes(path.read_bytes().replace(b'"round":1', b'"round":7'))
    with pytest.raises(AuditError, match="line 2, was edited"), Log(tmp_path, CHARITE):
        pass


def test_a_killed_writer_loses_nothing_that_was_recorded(tmp_path):
    script = (
        "import sys; from fedjax_core.sites.audit import Log; from fedjax_core.sites.wire.identity import SiteKey\n"
        "with Log(sys.argv[1], SiteKey.load(sys.argv[2])) as log:\n"
        "    for i in range(10**9):\n"
        "        log.record('charite', 'trained', round=i); print(i, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "log", CHARITE.save(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    ) as writer:
        said = [writer.stdout.readline() for _ in range(20)]
        writer.kill()
        said += writer.stdout.readlines()
    promised = max(int(line) for line in said if line.endswith("\n"))
    write(tmp_path / "log", 1)
    rounds = [entry.round for entry in show(tmp_path / "log", who="charite", what="trained")][:-1]
    assert rounds == list(range(len(rounds))) and len(rounds) >= promised + 1
    verify(tmp_path / "log", KEYS)


def test_one_process_writes_at_a_time(tmp_path):
    with Log(tmp_path, CHARITE):
        again = pytest.raises(
            RuntimeError,
            match=r"open in this process already: .* was not closed, .* close\(\) that one first",
        )
        with again, Log(tmp_path, CHARITE):
            pass
    with Log(tmp_path, CHARITE):
        pass
    hold = f"import fcntl, sys; f = open({str(tmp_path / 'lock')!r}); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline()
        with pytest.raises(RuntimeError, match="is being written by another process"), Log(tmp_path, CHARITE):
            pass
        other.stdin.close()
    with pytest.raises(RuntimeError, match="is not open"):
        Log(tmp_path, CHARITE).record("charite", "trained")


def test_a_full_disk_stops_the_work_and_leaves_the_log_whole(tmp_path, monkeypatch):
    with Log(tmp_path, CHARITE) as log:
        log.record("charite", "first")

        def full(descriptor):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(
                OSError, match=r"could not write to the audit log .* Nothing may go on unrecorded"
            ):
                log.record("charite", "second")
        log.record("charite", "third")
    assert verify(tmp_path, KEYS).n == 1 and [entry.what for entry in show(tmp_path)] == ["first", "third"]


@pytest.mark.parametrize(
    "odd", [{"who": "x" * 2000}, {"what": "x" * 2000}, {"run": "a\nb"}, {"round": 2**63}]
)
def test_nothing_is_written_that_could_not_be_read(tmp_path, odd):
    with Log(tmp_path, CHARITE) as log:
        with pytest.raises(ValueError, match=f"{next(iter(odd))} of a .* entry is of type"):
            log.record(**{"who": "charite", "what": "trained", **odd})
        log.record(
            "charite",
            "trained",
            about={"loss": np.float64(1e-5), "weight": math.nan, "said": "Zürich \\", "none": None},
        )
    (entry,) = show(tmp_path)
    assert verify(tmp_path, KEYS).n == 0 and entry.about == {
        "loss": 1e-5,
        "weight": "nan",
        "said": "Zürich \\",
        "none": None,
    }


@pytest.mark.parametrize(
    "about", [{"rows": np.ones(3)}, {"rows": [1, 2]}, {"text": "a\nb"}, {"raw": b"x"}, {"long": "x" * 2000}]
)
def test_entries_hold_small_values_only(tmp_path, about):
    with (
        Log(tmp_path, CHARITE) as log,
        pytest.raises(ValueError, match="or no single line; record a digest of it instead"),
    ):
        log.record("charite", "trained", about=about)
    assert log.head == NOTHING


def test_numbers_that_are_not_finite_are_kept_as_text(tmp_path):
    with Log(tmp_path, CHARITE) as log:
        log.record("charite", "quarantined", about={"norm": float("inf"), "weight": float("nan")})
    assert next(show(tmp_path)).about == {"norm": "inf", "weight": "nan"}


@pytest.mark.meets(
    "164.308(a)(1)(ii)(D)",
    by="a ledger at each site of what left it, and a log of who asked: `fedjax-core audit show`",
)
def test_the_ledger_tells_what_left(tmp_path):
    raw = message()
    with Log(tmp_path, CHARITE) as log:
        log.record_sent(envelope(), len(raw))
        log.record_sent(
            envelope(TENSORS | {"['w']": np.full((2, 2), np.nan, np.float32)}), 10, decision="withheld"
        )
    first, second = show(tmp_path, what="left")
    assert (first.who, first.run, first.round) == ("charite", "heart-1", 3)
    assert first.about["bytes"] == len(raw) and first.about["tensors"] == 2 and first.about["numbers"] == 6
    assert first.about["norm"] == pytest.approx(55.25**0.5) and first.about["recipient"] == "coordinator"
    assert (
        first.about["fields"] == "data examples weight"
        and second.about["norm"] == "nan"
        and second.about["decision"] == "withheld"
    )
    sent = {name: value for name, value in first.about.items() if name.startswith(("sent.", "numbers."))}
    fields = {"sent.data": "f00d", "sent.examples": 303, "sent.weight": 303.0}
    assert sent == {**fields, "numbers.['b']": "4 5", "numbers.['w']": "1.0 -2.0 0.5 3.0"}


def test_the_ledger_has_every_value_that_left_exactly_or_its_digest(tmp_path):
    sums = np.float32([0.1, 1e-30, 3e38, 2**24 + 2])
    small = {
        "sums": sums,
        "none": np.zeros((0, 3)),
        "scalar": np.array(np.float64(1) / 3),
        "many": np.arange(900, dtype=np.int16),
    }
    large = {"w": np.ones(2000, np.float32)}
    with Log(tmp_path, CHARITE) as log:
        log.record_sent(envelope(small, fields={"loss": 0.1, "none": None, "code": "x" * 1000}), 10)
        log.record_sent(envelope(large), 10)
        log.record_sent(
            envelope(
                {f"t{i}": np.ones(1, np.int8) for i in range(100)},
                fields={f"name-{i:060}": i for i in range(100)},
            ),
            10,
        )
    first, second, third = show(tmp_path)

    def numbers(name, dtype):
        parts = [
            first.about[f"numbers.{name}{part}"]
            for part in ("", ".2", ".3", ".4")
            if f"numbers.{name}{part}" in first.about
        ]
        return np.array(" ".join(parts).split(), dtype)

    assert numbers("sums", np.float32).tobytes() == sums.tobytes() and numbers(
        "many", np.int16
    ).tolist() == list(range(900))
    assert (
        numbers("scalar", np.float64) == 1 / 3
        and first.about["sent.none"] is None
        and first.about["sent.loss"] == 0.1
    )
    assert first.about["sent.code"] == "x" * 1000
    assert [name for name in second.about if name.startswith(("sent.", "numbers."))] == [
        "sent.data",
        "sent.examples",
        "sent.weight",
    ]
    assert third.about[f"sent.name-{99:060}"] == 99 and verify(tmp_path, KEYS).n == 2


CUTS = {
    "the last entries": lambda path: path.write_bytes(b"".join(lines(path)[:-4])),
    "all of it": lambda path: path.unlink(),
    "in the middle of a line": lambda path: path.write_bytes(path.read_bytes()[:-20]),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_log_that_was_cut_is_found_without_a_head_and_when_it_is_opened_again(tmp_path, cut, caplog):
    write(tmp_path)
    CUTS[cut](files(tmp_path)[0])
    with pytest.raises(AuditError, match=r"entries were cut off|holds no audit log|has no end"):
        verify(tmp_path, KEYS)
    write(tmp_path, 9)  # whoever opens it again says so, and however many entries follow
    assert "cut" in [entry.what for entry in show(tmp_path)] and "Keep it as it is" in caplog.text
    with pytest.raises(AuditError, match=r"says that [1-6] entries are missing before it"):
        verify(tmp_path, KEYS)


def test_the_file_of_heads_cannot_be_edited_and_is_missed(tmp_path, caplog):
    old = write(tmp_path, 2)
    path = tmp_path / "heads.json"
    path.write_bytes(path.read_bytes().replace(f"{old}".encode(), f"1:{'0' * 64}".encode()))
    with pytest.raises(AuditError, match="is not signed with a key of those given"):
        verify(tmp_path, KEYS)
    write(tmp_path, 1)
    path.unlink()
    assert verify(tmp_path, KEYS).n == 3
    write(tmp_path, 1)
    found = [(entry.what, entry.about.get("reason", "")) for entry in show(tmp_path)]
    assert [what for what, _ in found] == ["trained", "trained", "no heads", "trained", "no heads", "trained"]
    assert (
        "is not signed" in found[2][1] and found[4][1] == "heads.json is not there, so entries may be missing"
    )
    assert verify(tmp_path, KEYS).n == 5 and caplog.text.count("entries may be missing") == 2


@pytest.mark.parametrize("seconds", [0.0, 3600.0])
def test_what_is_not_waited_for_is_told_to_nobody_before_it_is_on_the_disk(tmp_path, monkeypatch, seconds):
    monkeypatch.setattr("fedjax_core.sites.audit.log._HEADS_SECONDS", seconds)
    with Log(tmp_path, CHARITE) as log:
        log.record("charite", "first")
        first = log.head
        log.record("charite", "second", wait=False)
        assert log.durable == first == Heads.read(tmp_path, KEYS).own
        log.record("charite", "third")
        assert log.durable == log.head and Heads.read(tmp_path, KEYS).own == (first if seconds else log.head)
        log.record("charite", "fourth", wait=False)
    assert Heads.read(tmp_path, KEYS).own == head_of(tmp_path)


def test_each_end_holds_the_others_head_and_sees_it_go_back(tmp_path):
    first, last = write(tmp_path / "mayo", 3, key=MAYO), write(tmp_path / "mayo", 3, key=MAYO)
    with Log(tmp_path / "charite", CHARITE) as log:
        for message, head in ((1, first), (3, last), (4, last), (2, first)):  # of which one overtook another
            assert log.hold("mayo", "run", message, str(head)) is None
        log.record("charite", "trained")
    with Log(tmp_path / "charite", CHARITE) as log:
        assert log.held == {"mayo": Held("run", 4, last)}
        assert "the log of mayo ends with entry 2, and ended with entry 5: entries were cut off" in log.hold(
            "mayo", "run", 5, str(first)
        )
        # said once
        assert log.hold("mayo", "run", 5, str(first)) is None and log.held == {"mayo": Held("run", 4, last)}
        log.record("mayo", "answered", run="run", about={"head.mayo": str(last)})
        # which may be in another log of that end
        assert log.hold("mayo", "another run", 6, str(first)) is None
    assert (
        held_by(tmp_path / "charite", KEYS, "mayo") == [first, last]
        and held_by(tmp_path / "charite", KEYS, "oslo") == []
    )
    assert held_by(tmp_path / "charite", KEYS, "mayo", ["another run"]) == [first]
    (tmp_path / "charite" / "heads.json").unlink()
    # from its entries
    assert (
        held_by(tmp_path / "charite", KEYS, "mayo")
        == [last]
        == held_by(tmp_path / "charite", KEYS, "mayo", ["run"])
    )
    assert verify(tmp_path / "mayo", [MAYO.public], held={"charite": [last]}) == last
    path = files(tmp_path / "mayo")[0]
    path.write_bytes(b"".join(lines(path)[:-2]))
    (tmp_path / "mayo" / "heads.json").unlink()
    assert verify(tmp_path / "mayo", [MAYO.public]).n == 3  # which nobody can tell by itself
    with pytest.raises(
        AuditError,
        match="ends with entry 3, but the head that charite holds is entry 5: 2 entries were cut off",
    ):
        verify(tmp_path / "mayo", [MAYO.public], held={"charite": [last]})
    write(tmp_path / "anew", 9, key=MAYO)
    with pytest.raises(
        AuditError,
        match="line 6, is entry 5, but not the one that the head that charite holds names: the log was written",
    ):
        verify(tmp_path / "anew", [MAYO.public], held={"charite": [last]})


def test_show_filters(tmp_path):
    with Log(tmp_path, CHARITE) as log:
        for who in ("charite", "mayo"):
            for what in ("trained", "left"):
                for round in (1, 2):
                    log.record(who, what, run="heart-1" if round == 1 else "heart-2", round=round)
    assert len(list(show(tmp_path))) == 8
    assert [entry.n for entry in show(tmp_path, who="mayo", what="left")] == [6, 7]
    assert [entry.n for entry in show(tmp_path, run="heart-2", what="left")] == [3, 7]
    assert [entry.n for entry in show(tmp_path, round=1, who="charite")] == [0, 2]


@pytest.mark.parametrize("text", ["", "17", "17:abc", "x:" + "0" * 64, "17:" + "g" * 64, "-1:" + "0" * 64])
def test_text_that_is_no_head_is_refused(text):
    with pytest.raises(ValueError, match="is not the head of a log: it reads like 17:"):
        Head.parse(text)


def test_a_folder_without_a_log_verifies_as_nothing(tmp_path):
    for reader in (lambda: verify(tmp_path, KEYS), lambda: head_of(tmp_path)):
        with pytest.raises(AuditError, match="holds no audit log"):
            reader()
