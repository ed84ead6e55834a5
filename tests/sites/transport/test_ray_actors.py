"""Four hospitals as four processes under Ray follow the stored trajectory of the heart study; an open Ray is
refused."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import jax
import numpy as np
import optax
import psutil
import pytest
import ray

import fedjax_core as fc
from fedjax_core.data.datasets.heart_disease import HOSPITALS
from fedjax_core.sites.audit import show
from fedjax_core.sites.federation import Rules
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.transport import ray_actors
from fedjax_core.sites.transport.ray_actors import RayTransport, _ActorReply, _no_place
from fedjax_core.sites.transport.ray_security import InsecureRay
from fedjax_core.sites.wire.identity import SiteKey
from tests.experiments.golden import STEPS, heart_disease, read
from tests.sites.actors import kill

__all__ = ["heart_disease"]


@pytest.fixture(scope="module")
def golden(data_dir):
    return read(data_dir / "golden_fl" / "heart_seed42.npz", sites=4)


@pytest.mark.parametrize("killed_before", [None, pytest.param(6, marks=pytest.mark.slow)])
def test_four_site_processes_follow_the_stored_weights(golden, heart_disease, tmp_path, killed_before):
    """SCAFFOLD, where a site that forgot its control variate would leave the trajectory."""
    composed = fc.compose(heart_disease.strategies(fc.models.logistic(features=13, classes=1))["Scaffold"])
    sites = [
        SiteFile(
            name=name,
            data={"x": golden[f"x_train_{i}"], "y": golden[f"y_train_{i}"][:, 0].astype(np.int32)},
            order=golden["order"][i : i + 1],
            folder=tmp_path / name,
        )
        for i, name in enumerate(HOSPITALS)
    ]
    # so many rounds as between machines: a report has three parts, and a request some more
    few, rules = (
        5,
        Rules(part_bytes=400),
    )
    with fc.Federation(
        composed, sites, batch_size=4, steps=STEPS, folder=tmp_path / "coordinator", rules=rules
    ) as fed:
        assert listening() == {"127.0.0.1"}
        state = fed.init(jax.random.key(0), params=heart_disease.unflat(golden["init"]))
        for r, expected in enumerate(golden["traj_Scaffold"][1:]):
            fed._transport.near = not few <= r < 2 * few
            if r == killed_before:
                kill(HOSPITALS[1])
            state, seen = fed.run(state, np.arange(4))
            np.testing.assert_allclose(heart_disease.flat(state.params), expected, rtol=0, atol=1e-5)
            assert float(seen["clients"]) == 4
        with pytest.raises(ValueError, match=r"idle_seconds is 9, and this federation began without"):
            fed.rules = Rules(idle_seconds=9.0)
        assert fed.rules is rules and fed._transport.progress(HOSPITALS[0]) == 0
    assert not ray.is_initialized()
    for way in ("came in parts", "went in parts"):
        moved = [
            entry.about["parts"] for entry in show(tmp_path / "coordinator" / "audit") if entry.what == way
        ]
        assert len(moved) == 4 * few and min(moved) > 1


def slow(x):
    """0, after 10 ms."""
    return jax.pure_callback(
        lambda x: np.float32(time.sleep(0.01) or 0), jax.ShapeDtypeStruct((), np.float32), x
    )


def test_a_site_that_is_watched_says_how_far_it_is_while_it_works():
    task = fc.Task(
        lambda key: jax.numpy.ones(()),
        lambda w, batch, key: w * batch["x"] * (1 + slow(jax.lax.stop_gradient(w))),
    )
    sites = [SiteFile(name="charite", data={"x": np.ones(1, np.float32)})]
    composed, steps = fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1))), 300
    with (
        fc.Federation(composed, sites, batch_size=1, steps=steps, rules=Rules(idle_seconds=60.0)) as fed,
        ThreadPoolExecutor(1) as thread,
    ):
        state = fed.init(jax.random.key(0))
        running = thread.submit(fed.run, state, [0])
        while not (seen := fed._transport.progress("charite")) and not running.done():
            time.sleep(0.05)
        assert 0 < seen < steps and not running.done()
        running.result()
        assert fed._transport.progress("charite") == steps


def listening():
    """The addresses at which this process and those that it started wait for connections."""
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = [
        c.laddr.ip
        for process in tree
        for c in process.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN
    ]
    return {ip.removeprefix("::ffff:") for ip in found}


def test_a_federation_does_not_join_a_ray_without_protection(monkeypatch):
    composed = fc.compose(fc.algorithms.fedavg(fc.models.linear(features=1), local=optax.sgd(0.1)))
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    with pytest.raises(InsecureRay, match=r"TLS \(RAY_USE_TLS=1"):
        fc.Federation(composed, [SiteFile(name="charite", data={})], batch_size=1, address="10.0.0.1:6379")


def test_a_wait_is_for_all_of_rays_replies_and_for_what_else_is_under_way(monkeypatch):
    looks, there = [], {"b"}

    def wait(refs, *, timeout, fetch_local):
        looks.append(timeout)
        ready = [ref for ref in refs if ref in there][:1]
        return ready, [ref for ref in refs if ref not in ready]

    monkeypatch.setattr(ray, "wait", wait)
    transport, a, b, other = object.__new__(RayTransport), _ActorReply("a"), _ActorReply("b"), Future()
    assert transport.wait([a, b], 9.0) == {b} and 8.9 < looks.pop() <= 9.0
    assert transport.wait([a, b], 9.0) == {b} and looks.pop() > 8.9, "it may be asked for twice"
    assert transport.wait([a], 0.0) == set() and looks == [0.0], "without time there is one look"
    looks.clear()
    assert transport.wait([a, other], 0.05) == set() and max(looks) < 0.05, (
        "what Ray does not know of is looked at now and then"
    )
    other.set_result(None)
    assert transport.wait([a, other], 9.0) == {other}
    there.add("a")
    assert transport.wait([a], 0.0) == {a}


def test_a_request_is_stored_once_and_so_are_parts_that_sites_are_sent_in_turn(monkeypatch):
    put = []
    monkeypatch.setattr(ray, "put", lambda x: put.append(bytes(x[:1])) or len(put))
    transport, requests = object.__new__(RayTransport), [bytes([i]) * (10 << 20) for i in range(5)]
    transport._stored = deque(maxlen=8)
    for i in (0, 1, 0, 1, 2, 1, 2, 3, 2, 3):
        transport._put(requests[i])
    assert put == [bytes([i]) for i in range(4)]
    transport._put(requests[4])
    assert [sent[:1] for sent, _ in transport._stored] == [bytes([i]) for i in range(1, 5)], "old ones go"
    transport._put(bytes(50 << 20))
    assert len(transport._stored) == 1, "one that is large is there alone"
    for i in range(100):
        transport._put(bytes([i]))
    assert len(transport._stored) == 8


def test_who_cannot_start_is_known_by_name_and_nobody_waits_for_whom_there_is_no_place(monkeypatch):
    """Without Ray: a node that lacks a site's resources, a process that is no site, and one that reads its
    data for long."""
    nodes = [
        {"Alive": True, "Resources": {"charite": 1.0, "oslo": 1.0}, "Labels": {"at": "kyoto"}},
        {"Alive": False, "Resources": {"mayo": 1.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    files = {
        name: SiteFile(name=name, data={}, resources={name: 1.0}) for name in ("charite", "mayo", "oslo")
    }
    files["kyoto"] = SiteFile(name="kyoto", data={}, node={"at": "kyoto"})
    assert _no_place(files["charite"]) is None and _no_place(files["kyoto"]) is None
    assert "no node of this Ray has what its file names (mayo=1)" in _no_place(files["mayo"])
    assert "(at=lima)" in _no_place(SiteFile(name="lima", data={}, node={"at": "lima"}))
    assert _no_place(SiteFile(name="any", data={}, node={"at": "!lima"})) is None, (
        "a selector of another kind is Ray's to judge"
    )
    key = SiteKey.make("charite").public
    said = {"charite": key.text.encode(), "oslo": b"FileNotFoundError"}
    monkeypatch.setattr(ray_actors, "bytes_of", lambda ref, seconds: said[ref])
    monkeypatch.setattr(ray, "wait", lambda refs, **how: ([ref for ref in refs if ref in said], []))
    monkeypatch.setattr(ray_actors, "_PLACE_SECONDS", 0.0)
    monkeypatch.setattr(ray_actors, "_START_SECONDS", 0.2)

    def transport():
        found = object.__new__(RayTransport)
        found._actors = {
            name: SimpleNamespace(key=SimpleNamespace(remote=lambda name=name: name)) for name in files
        }
        found.keys, found.away, found._tried = {}, {}, {}
        return found

    found = transport()
    found._meet(files, alone=False)
    assert found.keys == {"charite": key} and list(found._tried) == ["oslo"]
    assert found.away["oslo"].startswith("site oslo could not start: FileNotFoundError")
    assert "no node of this Ray" in found.away["mayo"] and "did not start within 0.2 s" in found.away["kyoto"]
    with pytest.raises(RuntimeError, match="site oslo could not start: FileNotFoundError"):
        transport()._meet(files, alone=True)
