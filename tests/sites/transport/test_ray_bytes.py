"""Of what an actor returns the coordinator reads bytes; anything else is refused unread, whatever it would do
when unpickled."""

import os
import sys
import time
from concurrent.futures import Future

import cloudpickle
import numpy as np
import optax
import pytest
import ray

import fedjax_core as fc
from fedjax_core.sites.coordinator.replies import Replies
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.transport import ray_actors, ray_bytes, ray_site
from fedjax_core.sites.transport.ray_bytes import NoReply, NotBytes, bytes_of, leave_errors_unread
from fedjax_core.sites.wire.identity import SiteKey
from fedjax_core.sites.wire.transport import bring
from tests.sites.parties import ROSTER, header


class Bomb:
    """What leaves a mark where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"echo $PPID >> {self.path}",)


class Core:
    """A core worker of Ray with one object: its data and metadata."""

    def __init__(self, data, metadata):
        self.found, self.asked = (data, metadata, None), []

    def get_objects(self, refs, timeout_ms):
        self.asked.append((refs, timeout_ms))
        return [self.found]


@pytest.fixture
def returned(monkeypatch):
    def put(data, metadata):
        core = Core(data, metadata)
        monkeypatch.setattr(ray_bytes._worker, "core_worker", core, raising=False)
        return core

    return put


def test_bytes_are_read_where_they_lie(returned):
    data = np.arange(5, dtype=np.uint8)
    core = returned(data, b"RAW")
    found = bytes_of("ref", 2.5)
    assert (
        bytes(found) == bytes(range(5))
        and np.shares_memory(np.frombuffer(found, np.uint8), data)
        and found.readonly
    )
    bytes_of("ref")
    assert core.asked == [(["ref"], 2500), (["ref"], -1)]
    returned(None, b"RAW")
    assert bytes_of("ref") == b""


@pytest.mark.parametrize(
    "metadata", [b"PYTHON", b"XLANG", b"ACTOR_HANDLE", b"RAW,DEBUG:x", b"RAW ", b"", None, b"9999", b"-1"]
)
def test_what_says_that_it_is_no_bytes_is_refused_unread(returned, metadata, tmp_path):
    returned(cloudpickle.dumps(Bomb(tmp_path / "mark")), metadata)
    with pytest.raises(NotBytes, match="an object where bytes are due; it was not read"):
        bytes_of("ref")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("metadata", "said"),
    [(b"3", "TASK_EXECUTION_EXCEPTION"), (b"1,more", "ACTOR_DIED"), (b"0", "WORKER_DIED")],
)
def test_an_error_is_known_by_its_number_alone(returned, metadata, said, tmp_path):
    returned(cloudpickle.dumps(Bomb(tmp_path / "mark")), metadata)
    with pytest.raises(NoReply, match=f"Ray says {said}"):
        bytes_of("ref")
    assert not (tmp_path / "mark").exists()


def test_an_object_in_the_place_of_a_reply_is_recorded_as_refused(returned):
    returned(cloudpickle.dumps("hello"), b"PYTHON")
    records = []
    replies = Replies(
        "run",
        ["charite"],
        ROSTER,
        lambda who, what, number, about: records.append((who, what, about["code"])),
    )
    reply = Future()
    reply.set_result(lambda: bytes_of("ref"))
    assert (
        replies.accept(reply, 0, 3, header(kind="train")) is None
        and "object where bytes are due" in replies.reasons[0]
    )
    replies.record_late(reply, 0)
    assert records == [("charite", "refused", "not-bytes")] * 2


@pytest.mark.parametrize(
    ("data", "steps"), [(b"12", 12), (b"", 0), (b"-3", 0), (b"x", 0), (b"9" * 5000, int("9" * 18))]
)
def test_progress_is_a_number_whatever_comes(returned, data, steps):
    returned(data or None, b"RAW")
    transport = object.__new__(ray_actors.RayTransport)
    transport.watched, transport._actors = True, {"charite": Remote()}
    assert transport.progress("charite") == steps


class Remote:
    """An actor's handle, as far as that is asked for its progress."""

    @property
    def progress(self):
        return self

    def remote(self):
        return "ref"


def test_errors_that_nobody_asks_for_are_dropped_unread():
    leave_errors_unread()
    assert ray_bytes._worker.raise_errors([("data", b"3", None)], [None]) is None


class Evil(ray_site.SiteActor):
    """A site's process under another program, which says who the site is."""

    mark: str

    def handle(self, request):
        raise type("Boom", (Exception,), {"__reduce__": Bomb(self.mark).__reduce__})("planted")


class Returning(Evil):
    def handle(self, request):
        return Bomb(self.mark)


@pytest.fixture
def by_value():
    """Ray's workers get the classes of this file as they are here."""
    here = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(here)
    yield
    ray.cloudpickle.unregister_pickle_by_value(here)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "raised"), [(Evil, NoReply), (Returning, NotBytes)])
def test_nothing_that_a_worker_returns_or_raises_runs_at_the_coordinator(
    kind, raised, tmp_path, monkeypatch, capfd, by_value
):
    mark = tmp_path / "mark"
    monkeypatch.setattr(kind, "mark", str(mark), raising=False)
    monkeypatch.setattr(ray_actors, "SiteActor", kind)
    composed = fc.compose(fc.algorithms.fedavg(fc.models.linear(features=1), local=optax.sgd(0.1)))
    site = SiteFile(name="charite", data={"x": np.ones((1, 1), np.float32), "y": np.ones(1, np.float32)})
    transport = ray_actors.RayTransport(
        [site], Study(composed, 1, 1), SiteKey.make("coordinator").public, watched=False
    )
    reply = transport.send("charite", b"hello")
    assert transport.wait([reply], 60.0) == {reply}
    with pytest.raises(raised):
        bring(reply)
    for _ in range(3):
        del reply
        reply = transport.send("charite", b"and nobody asks what came")
        time.sleep(0.5)
    del reply
    time.sleep(0.5)  # Ray reads errors that nobody asked for once nobody can any more
    transport.close()
    assert str(os.getpid()) not in (mark.read_text().split() if mark.exists() else []), "it ran here"
    assert "planted" not in "".join(capfd.readouterr())
