"""What a site is stands in its own file, on its own machine: of what a coordinator says nothing counts, and
what differs is refused."""

import json
import os
from functools import cache

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.audit import show
from fedjax_core.sites.own_file import VARIABLE, NotOwn, check, find
from fedjax_core.sites.protocol.request import Requests, addresses
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.transport import ray_actors, ray_site, ray_start
from fedjax_core.sites.transport.ray_site import Handed, SiteActor
from fedjax_core.sites.wire.envelope import decode
from fedjax_core.sites.wire.identity import Roster, SiteKey

COORDINATOR, OTHER = SiteKey.make("coordinator"), SiteKey.make("coordinator")
FULL = {
    "name": "charite",
    "data": "data",
    "folder": "state",
    "account": "account",
    "left_gb": 0.5,
    "study": "tests.sites.test_own_file:study",
    "arguments": {"lr": 0.1},
    "policy": "policy.toml",
    "key": "charite.key",
    "coordinator": "coordinator.pub",
    "roster": "roster.toml",
    "labels": "y",
    "data_was": "f00d",
    "departments": "ward",
    "person": "patient",
    "held_out": "test",
    "resources": {"charite": 1.0},
    "node": {"zone": "a"},
}
# of the file of the site that is started
ABSENT = (
    "account",
    "roster",
    "data_was",
    "departments",
    "person",
    "held_out",
)
MARKED = []


@cache
def averaging(lr):
    return fc.compose(fc.algorithms.fedavg(fc.models.logistic(features=2, classes=2), local=optax.sgd(lr)))


def study(lr):
    MARKED.append(lr)
    return Study(averaging(lr), batch_size=2)


def write(path, settings):
    def said(value):
        return (
            "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + " }"
            if isinstance(value, dict)
            else json.dumps(value)
        )

    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{name} = {said(value)}\n" for name, value in settings.items()))
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A site's folder, which its machine names; it is paused by its policy."""
    own = {name: value for name, value in FULL.items() if name not in ABSENT}
    write(tmp_path / "site.toml", own)
    SiteKey.make("charite").save(tmp_path)
    COORDINATOR.save(tmp_path)
    fc.Clients.from_list([{"x": np.eye(2, dtype=np.float32), "y": np.array([0, 1])}]).save(tmp_path / "data")
    (tmp_path / "policy.toml").write_text('site = "charite"\npaused = true\n')
    monkeypatch.setenv(VARIABLE, str(tmp_path / "site.toml"))
    return tmp_path


def refusals(home):
    return [entry.about for entry in show(home / "state" / "audit") if entry.what == "refused"]


def copy(home, **settings):
    """What comes along of a coordinator's copy that has these settings."""
    return SiteFile.read(
        write(home / "coordinator" / "charite.toml", {"name": "charite", **settings})
    ).digests


def test_a_site_starts_from_its_own_file_and_keeps_its_policy(home):
    actor = SiteActor("charite", copy(home, resources=FULL["resources"]))
    assert actor.key().decode() == SiteKey.load(home / "charite.key").public.text
    requests = Requests("run", study(0.1).hash, addresses(["charite"]), COORDINATOR, lambda *about: None)
    roster = Roster({"charite": SiteKey.load(home / "charite.key").public})
    fields = decode(
        actor.handle(requests.write("describe", 0, to=["charite"])), roster, recipient="coordinator"
    ).header.fields
    assert fields["code"] == "declined" and "paused" in str(fields["reason"])
    theirs = Requests("run", study(0.1).hash, addresses(["charite"]), OTHER, lambda *about: None)
    answer = decode(
        actor.handle(theirs.write("describe", 0, to=["charite"])), roster, recipient="coordinator"
    ).header
    assert answer.kind == "refusal" and answer.fields["code"] == "wrong-key"
    actor._site.__exit__()


ANOTHER = {
    "data": "elsewhere",
    "folder": "elsewhere",
    "account": "elsewhere",
    "left_gb": 2.5,
    "study": "tests.sites.test_own_file:another",
    "arguments": {"lr": 0.1234},
    "policy": "elsewhere.toml",
    "key": "elsewhere.key",
    "coordinator": "elsewhere.pub",
    "roster": "elsewhere.toml",
    "labels": "x",
    "data_was": "f00d",
    "departments": "ward",
    "person": "patient",
    "held_out": "test",
    "resources": {"charite": 2.0},
    "node": {"zone": "b"},
}


@pytest.mark.parametrize("setting", ANOTHER)
def test_a_copy_that_differs_is_refused_and_recorded_by_the_name_of_the_setting(home, setting):
    MARKED.clear()
    said = SiteActor("charite", copy(home, **{setting: ANOTHER[setting]})).key().decode()
    assert f"the coordinator's copy of charite's file has another '{setting}' than the site's own" in said
    (about,) = refusals(home)
    assert about["code"] == "not-own" and f"'{setting}'" in about["reason"]
    written = said + json.dumps(about) + (home / "state" / "errors.log").read_text()
    assert not any(part in written for part in ("elsewhere", "0.1234", ":another", "f00d"))
    assert MARKED == [], "no study was made"


def test_all_settings_of_a_site_are_compared():
    fields = {
        name for name in SiteFile.__dataclass_fields__ if name not in ("name", "order", "file", "digests")
    }
    assert fields == set(ANOTHER) and set(FULL) == {"name", *ANOTHER}


def test_a_copy_that_is_the_same_or_says_less_is_as_good_as_none(home):
    own = SiteFile.read(home / "site.toml")
    check(own, own.digests)
    for name in own.digests:
        check(own, {other: digest for other, digest in own.digests.items() if other != name})
    elsewhere = dict(own.digests) | {"node": "0", "resources": "0"}
    with pytest.raises(NotOwn, match="'node', 'resources'"):
        check(own, elsewhere)
    placed = SiteFile.read(
        write(
            home / "site.toml",
            {name: value for name, value in FULL.items() if name not in ("node", "resources")},
        )
    )
    check(placed, {"node": "0", "resources": "0"})  # which the site's file leaves to the coordinator


@pytest.mark.parametrize("setting", ["data", "study", "coordinator"])
def test_what_its_own_file_lacks_nobody_else_gives(home, setting):
    write(home / "site.toml", {name: value for name, value in FULL.items() if name not in (setting, *ABSENT)})
    said = SiteActor("charite", {}).key().decode()
    assert f"charite's own file has no `{setting}`" in said and len(refusals(home)) == 1


def test_a_file_that_its_machine_does_not_name_is_not_looked_for(home, monkeypatch):
    def said():
        return SiteActor("charite", {}).key().decode()

    monkeypatch.setenv(VARIABLE, write(home / "mayo.toml", FULL | {"name": "mayo"}).as_posix())
    assert (
        f"{VARIABLE} on the machine where charite was to start names no files of a site of this name"
        in said()
    )
    monkeypatch.setenv(VARIABLE, str(home / "secret" / "absent.toml"))
    assert "one cannot be read (FileNotFoundError)" in said() and "secret" not in said()
    monkeypatch.delenv(VARIABLE)
    assert (
        f"{VARIABLE} is not set on the machine where charite was to start" in said()
        and "with `fedjax-core node site.toml`" in said()
    )


def test_a_machine_may_have_several_sites_and_a_path_any_character(home):
    odd = write(home / "a:b" / "site.toml", FULL | {"name": "odd"})
    assert find("odd", {VARIABLE: str(odd)}).file == odd
    two = os.pathsep.join(
        [
            str(home / "site.toml"),
            str(home / "absent"),
            "",
            str(write(home / "mayo.toml", FULL | {"name": "mayo"})),
        ]
    )
    assert find("mayo", {VARIABLE: two}).name == "mayo" and find("charite", {VARIABLE: two}).name == "charite"
    with pytest.raises(NotOwn, match="names 2 files of a site of this name"):
        find("mayo", {VARIABLE: os.pathsep.join([two, str(home / "mayo.toml")])})


def test_a_runtime_environment_of_the_coordinators_is_refused_and_recorded(home, monkeypatch):
    monkeypatch.setattr(ray_site, "_brought", lambda: ["env_vars", "working_dir"])
    assert (
        "in a runtime environment of the coordinator's ('env_vars', 'working_dir')"
        in SiteActor("charite", {}).key().decode()
    )
    assert len(refusals(home)) == 1


def test_what_is_handed_over_is_for_a_ray_of_ones_own(home, monkeypatch):
    """A `SiteFile` made in Python, over a Ray that this process started; anywhere else it is refused before
    anything starts."""
    one = SiteFile(name="charite", data={"x": np.eye(2, dtype=np.float32), "y": np.array([0, 1])})
    actor = SiteActor("charite", {}, Handed(one, study(0.1), COORDINATOR.public.text))
    assert actor.key().startswith(b"ed25519:")
    for more in (
        {},
        {"policy": home / "policy.toml"},
        {"study": "subprocess:getoutput"},
        {"order": np.zeros((1, 1, 1), np.int32)},
    ):
        with pytest.raises(
            ValueError,
            match=r"the site charite is given here with 'data'.* has these from its own file alone",
        ):
            ray_start.start_ray([SiteFile(name="charite", data=one.data, **more)], "127.0.0.1:1", True)
    with pytest.raises(ValueError, match="is given here with 'policy'"):
        ray_start.start_ray([SiteFile(name="charite", policy=home / "policy.toml")], "127.0.0.1:1", True)
    ray_start.check_nothing_is_carried(
        [SiteFile(name="charite", resources={"charite": 1.0}), SiteFile.read(home / "site.toml")]
    )


class Started:
    """Ray, as far as it is asked for actors: it notes what each is handed."""

    def __init__(self):
        self.handed = []

    def options(self, **options):
        return self

    def remote(self, *arguments):
        self.handed.append(arguments)
        return self

    @property
    def handle(self):
        return self


@pytest.mark.parametrize("address", [None, "127.0.0.1:1"])
@pytest.mark.parametrize("made", ["path", "python"])
def test_what_crosses_when_an_actor_is_made_is_a_name_and_digests(home, monkeypatch, address, made):
    started = Started()
    monkeypatch.setattr(ray_actors, "start_ray", lambda files, address, insecure_local: True)
    monkeypatch.setattr(ray_actors.ray, "remote", lambda kind: started)
    # which would start a Ray of its own for the tests after this one
    monkeypatch.setattr(ray_actors.ray, "put", lambda value: value)
    monkeypatch.setattr(ray_actors.RayTransport, "_meet", lambda transport, files, alone: None)
    one = (
        SiteFile.read(home / "site.toml")
        if made == "path"
        else SiteFile(name="charite", resources={"charite": 1.0})
    )
    ray_actors.RayTransport([one], study(0.1), COORDINATOR.public, address=address, watched=False)
    name, said, handed = started.handed[0]
    assert (
        name == "charite" and said == dict(one.digests) and all(len(digest) == 64 for digest in said.values())
    )
    assert (handed is None) == (made == "path" or address is not None)


@pytest.mark.slow
def test_over_a_ray_that_is_started_here_a_file_is_the_coordinators_copy(home, monkeypatch):
    def run():
        composed = study(0.1)
        with fc.Federation(
            composed.round, [home / "copy.toml"], batch_size=2, key=COORDINATOR, folder=home / "c"
        ) as fed:
            return fed.run(fed.init(jax.random.key(0)), [0])[1]

    write(home / "copy.toml", {"name": "charite"})
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(RuntimeError, match=f"site charite could not start: {VARIABLE} is not set"):
        run()
    monkeypatch.setenv(VARIABLE, str(home / "site.toml"))
    (home / "policy.toml").write_text('site = "charite"\n[tasks]\nmode = "first-use"\n')
    assert float(run()["examples"]) == 2
    write(home / "copy.toml", {"name": "charite", "policy": "elsewhere.toml"})
    with pytest.raises(RuntimeError, match="has another 'policy' than the site's own"):
        run()
    assert len(refusals(home)) == 1
