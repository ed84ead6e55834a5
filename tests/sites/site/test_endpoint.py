"""A site from its file: what is installed there is what runs there."""

import functools
import shutil
import subprocess
from functools import cache
from subprocess import getoutput

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.federation import Federation
from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.site.load import load_data
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study, build
from fedjax_core.sites.wire.identity import SiteKey

partly = functools.partial(getoutput, "id")

FILE = """
name = "charite"
folder = "state"
data = "data"
study = "tests.sites.site.test_endpoint:study"
arguments = { lr = 0.1 }
key = "charite.key"
coordinator = "coordinator.pub"
policy = "policy.toml"
labels = "y"
resources = { charite = 1.0 }
"""


@cache
def averaging(lr):
    return fc.compose(fc.algorithms.fedavg(fc.models.logistic(features=2, classes=2), local=optax.sgd(lr)))


def study(lr):
    return Study(averaging(lr), batch_size=2)


def test_a_federation_of_files(tmp_path):
    coordinator, site = SiteKey.make("coordinator"), SiteKey.make("charite")
    coordinator.save(tmp_path)
    site.save(tmp_path)
    fc.Clients.from_list([{"x": np.eye(2, dtype=np.float32), "y": np.array([0, 1])}]).save(tmp_path / "data")
    (tmp_path / "site.toml").write_text(FILE)
    mine = study(0.1)
    allowed = f'[tasks]\nallowed = ["{mine.hash}"]\n[minimum]\nper_class = 1\n'
    (tmp_path / "policy.toml").write_text(f'site = "charite"\n{allowed}')
    with Federation(
        mine.round, [tmp_path / "site.toml"], batch_size=2, transport="in-process", key=coordinator
    ) as fed:
        state, seen = fed.run(fed.init(jax.random.key(0)), [0])
    assert int(state.round) == 1 and float(seen["examples"]) == 2


def test_a_site_file_is_checked(tmp_path):
    (tmp_path / "site.toml").write_text('name = "charite"\ndata = "data"\nstudie = "a:b"')
    with pytest.raises(ValueError, match="'studie' is unknown or missing"):
        SiteFile.read(tmp_path / "site.toml")
    (tmp_path / "site.toml").write_text('name = "charite"')
    with pytest.raises(ValueError, match=r"site.toml names no `data`: a folder of Clients.save"):
        load_data(SiteFile.read(tmp_path / "site.toml"))
    (tmp_path / "site.toml").write_text('name = "charite"\ndata = 3\nresources = "charite"')
    with pytest.raises(ValueError, match="'data', 'resources' is of another kind than it should be"):
        SiteFile.read(tmp_path / "site.toml")
    (tmp_path / "site.toml").write_text('data = "data"')
    with pytest.raises(ValueError, match="'name' is unknown or missing"):
        SiteFile.read(tmp_path / "site.toml")


def test_a_study_is_built_from_what_is_installed():
    assert (
        build("tests.sites.site.test_endpoint:study", {"lr": 0.1}).hash == study(0.1).hash != study(0.2).hash
    )
    with pytest.raises(ValueError, match="names no function"):
        build("tests.sites.site.test_endpoint", {})
    with pytest.raises(ValueError, match=r"must return a .*Study"):
        build("tests.sites.site.test_endpoint:note", {"text": "hello"})
    with pytest.raises(ValueError, match="no module 'nowhere' here"):
        build("nowhere:study", {})
    with pytest.raises(
        ValueError, match=r"does not take the arguments \{'rate': 0.1\}: missing a required argument: 'lr'"
    ):
        build("tests.sites.site.test_endpoint:study", {"rate": 0.1})


def test_a_fingerprint_tells_nothing_without_the_sites_key(tmp_path):
    def told(folder, age=58.0, order=None, **more):
        data = {"x": np.array([[1.0, 2.0], [age, 4.0]], np.float32), "y": np.zeros(2, np.float32)}
        about = SiteFile(name="charite", data=data, folder=folder, order=order, **more)
        with Site(about, study(0.1), SiteKey.make("coordinator").public) as site:
            return site.context.data.fingerprint, site.context.data.raw.fingerprint()

    (first, plain), (second, _) = told(tmp_path / "one"), told(tmp_path / "two")
    assert len({first, second, plain}) == 3 and plain not in first
    assert told(tmp_path / "one") == (first, plain) and told(tmp_path / "one", age=59.0)[0] != first
    assert told(tmp_path / "one", order=np.zeros((1, 2, 2), np.int32))[0] not in (first, second, plain)
    shutil.move(tmp_path / "one", tmp_path / "moved")  # a site that is moved with its key keeps it
    assert (
        told(tmp_path / "moved")[0]
        == first
        == told(tmp_path / "anew", key=tmp_path / "moved" / "charite.key")[0]
    )
    # in the process of who has the data: a run resumes there, and no key is kept
    assert told(None) == told(None)


CALLED = []


def note(text):
    """A function that makes no study."""
    CALLED.append(text)


class Callable:
    def __init__(self, text):
        CALLED.append(text)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("subprocess:getoutput", "is of Python's own library"),
        ("os.path:exists", "is of Python's own library"),
        ("builtins:exec", "is of Python's own library"),
        ("tests.sites.site.test_endpoint:getoutput", "is no function that is written in 'tests'"),
        ("tests.sites.site.test_endpoint:partly", "is no function that is written in 'tests'"),
        ("tests.sites.site.test_endpoint:Callable", "is no function that is written in 'tests'"),
        ("numpy:array", "is no function that is written in 'numpy'"),
    ],
)
def test_a_file_can_name_no_function_but_one_that_is_written_for_it(name, said, monkeypatch):
    """Of what is refused nothing is called, as a study or as data."""
    monkeypatch.setattr(subprocess, "getoutput", lambda cmd: CALLED.append(cmd))
    CALLED.clear()
    with pytest.raises(ValueError, match=said):
        build(name, {"text": "hello"})
    with pytest.raises(ValueError, match=said):
        load_data(SiteFile(name="charite", data=name))
    assert CALLED == []
