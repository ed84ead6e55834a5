"""Each check both ways: a site that is fit passes all of them, and one thing wrong at a time is found by its
check and by no other."""

import json
import re
import shutil
import socket
import time
from dataclasses import replace

import numpy as np
import pytest

from fedjax_core.cli import main
from fedjax_core.consortium.setup import Layout, prepare
from fedjax_core.data.clients import Clients
from fedjax_core.files import write_whole
from fedjax_core.sites.doctor import checks, machine
from fedjax_core.sites.doctor.examination import Settings, beside, examine
from fedjax_core.sites.doctor.expected import Expected
from fedjax_core.sites.own_file import VARIABLE
from fedjax_core.sites.policy import PINNED, pin
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.transport.ray_security import equip
from tests.sites.tls_server import server


@pytest.fixture(autouse=True)
def no_token_of_another_test(monkeypatch):
    """A Ray that this process started for another test leaves its token, by which a site's own would not be
    looked at."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A site that is fit, as a consortium in a box makes it."""
    folder = Layout(tmp_path_factory.mktemp("fit") / "box")
    prepare(folder, sites=2)
    return folder.site("hospital-1")


@pytest.fixture
def site(made, tmp_path):
    shutil.copytree(made, tmp_path / "site")
    edit(
        tmp_path / "site" / "ray" / "environment",
        "^FEDJAX_CORE_SITE=.*",
        f"FEDJAX_CORE_SITE={tmp_path / 'site' / 'site.toml'}",
    )
    return tmp_path / "site"


def edit(path, pattern, new):
    text = path.read_text()
    changed = re.sub(pattern, new, text, flags=re.MULTILINE)
    assert changed != text
    path.write_text(changed)


def resave(site, change):
    found = change(dict(Clients.open(site / "data").columns))
    shutil.rmtree(site / "data")
    Clients.from_list(
        [{name: np.asarray(x) for name, x in found.items()}], ids=["hospital-1"], allow_nan=True
    ).save(site / "data")


def known(site, fingerprint):
    expected = Expected.read(site / "expected.toml")
    replace(expected, data={"hospital-1": fingerprint}).write(site / "expected.toml")


def other_public(site):
    main(["keys", "make", "hospital-1", "--folder", str(site / "other")])
    shutil.copy(site / "other" / "hospital-1.pub", site / "hospital-1.pub")


def expire(site):
    environment = (site / "ray" / "environment").read_text()
    shutil.rmtree(site / "ray")
    equip(site, {"ray": ["127.0.0.1"]}, days=3)
    (site / "ray" / "environment").write_text(environment)


def reviewed_was(site, digest):
    """The site took part once, when its study's package had other files."""
    (site / "state").mkdir(mode=0o700, exist_ok=True)
    hash = Expected.read(site / "expected.toml").study
    write_whole(site / "state" / "code.json", json.dumps({hash: {"fedjax_core": digest}}))


def asks(folder, what):
    """The policy asks this of the study."""
    edit(folder / "policy.toml", "^fields", f'by = "study"\\n{what}\\nfields')


def allow(site, name):
    edit(site / "policy.toml", 'mode = "first-use"', f'mode = "list"\nallowed = ["{name}"]')


def pin_another(site):
    folder = SiteFile.read(site / "site.toml").folder
    folder.mkdir(mode=0o700, exist_ok=True)
    pin(folder / PINNED, "3f9a" * 8)
    (folder / PINNED).chmod(0o600)


def bad_labels(columns):
    """Three records that no model of two classes could use."""
    return {**columns, "y": np.where(np.arange(len(columns["y"])) < 3, 7, columns["y"])}


WRONG = {
    "another package": ("versions", lambda s: edit(s / "expected.toml", '^"jax" = .*', '"jax" = "0.0.1"'), r"pip install 'jax==0.0.1'"),
    "another python": ("versions", lambda s: edit(s / "expected.toml", "^python = .*", 'python = "2.7"'), "made with 2.7"),
    "a key for all to read": ("key", lambda s: (s / "hospital-1.key").chmod(0o644), "has mode 0644"),
    "no key": ("key", lambda s: (s / "hospital-1.key").unlink(), "fedjax-core keys make hospital-1"),
    "another key's public half": ("key", other_public, "is not the public half of"),
    "no coordinator": ("coordinator", lambda s: (s / "coordinator.pub").unlink(), "No such file"),
    "somebody else's key": ("coordinator", lambda s: edit(s / "coordinator.pub", "^coordinator", "mayo"), "the key of 'mayo'"),
    "a clock behind": ("clock", lambda s: edit(s / "expected.toml", "^made = .*", "made = 4e9"), "behind the coordinator's"),
    "no data": ("data labels", lambda s: shutil.rmtree(s / "data"), "data"),
    "another dtype": ("data", lambda s: resave(s, lambda c: {**c, "x": c["x"].astype("f8")}), r"x is float64\[30\], not float32\[30\]"),
    "a column too many": ("data", lambda s: resave(s, lambda c: {**c, "z": c["y"]}), r"z is int32\[\], not expected"),
    "NaN": ("data labels", lambda s: resave(s, lambda c: {**c, "x": c["x"] * np.nan}), "NaN|finite"),
    "changed data": ("data", lambda s: known(s, "beef"), "data_was = 'beef'"),
    "few of a class": ("labels", lambda s: edit(s / "policy.toml", "per_class = 3", "per_class = 300"), "asks for 300"),
    "one class alone": ("labels", lambda s: resave(s, lambda c: {**c, "y": c["y"] * 0}), "the only classes with examples are 0,"),
    "few examples": ("labels", lambda s: edit(s / "policy.toml", "examples = 10", "examples = 9999"), "asks for 9999"),
    "no labels": ("labels", lambda s: edit(s / "site.toml", '^labels = "y"', 'labels = "z"'), "names no column"),
    "a policy that is none": ("labels policy", lambda s: edit(s / "policy.toml", "^paused", "pausd"), "pausd"),
    "paused": ("policy", lambda s: edit(s / "policy.toml", "paused = false", "paused = true"), "is paused"),
    "another's policy": ("policy", lambda s: edit(s / "policy.toml", '^site = .*', 'site = "mayo"'), "policy of 'mayo'"),
    "a study not allowed": ("policy", lambda s: edit(s / "policy.toml", "first-use", "list"), "tasks.allowed"),
    "a clip that the study lacks": ("policy", lambda s: asks(s, "clip = 1.0"), "does not say"),
    "a noise that the study lacks": ("policy", lambda s: asks(s, "noise = 2.0"), "noise of at least 2"),
    "a hash that is none": ("labels policy", lambda s: allow(s, "3f9a..."), r"'3f9a\.\.\.', and the hash of a study is 32 digits"),
    "another hash": ("policy", lambda s: allow(s, "3f9a" * 8), "does not allow the study [0-9a-f]{32}"),
    "another hash, and nothing expected": (
        "policy", lambda s: (allow(s, "3f9a" * 8), (s / "expected.toml").unlink()), "does not allow the study [0-9a-f]{32}",
    ),
    "a study pinned before": ("policy", lambda s: pin_another(s), f"pins the study {'3f9a' * 8}.*add it to tasks.allowed"),
    "a column target": ("data task", lambda s: resave(s, lambda c: {**c, "y": c["y"][:, None]}), r"Pass y\[:, 0\]|columns are not"),
    "two features too few": (
        "data task", lambda s: resave(s, lambda c: {**c, "x": c["x"][:, :28]}), "built for 30 features|columns are not",
    ),
    "labels 1 and 2": (
        "task", lambda s: resave(s, lambda c: {**c, "y": c["y"] + 1}), r"label in column 'y' at client 0 .*, is not from 0 to 1",
    ),
    "labels -1 and 1": (
        "data task", lambda s: resave(s, lambda c: {**c, "y": (2 * c["y"] - 1).astype("f4")}),
        "is not a whole number from 0|columns are not",
    ),
    "too many bad records": (
        "task", lambda s: (resave(s, bad_labels), edit(s / "policy.toml", "^paused", "max_bad_share = 0.01\npaused")),
        "3 of [0-9]+ records are bad",
    ),
    "another study": ("study", lambda s: edit(s / "site.toml", r"^\[arguments\]", "[arguments]\nlr = 0.5"), "install the same version"),
    "another fedjax_core": ("study", lambda s: edit(s / "expected.toml", "^.fedjax_core. = .*", "fedjax_core = '00'"), "are others"),
    "changed code": ("study", lambda s: reviewed_was(s, "00"), "fedjax_core. have changed .*code.json"),
    "no study": ("study", lambda s: edit(s / "site.toml", "example:study", "example:studio"), "names no function"),
    "data for all to read": ("modes", lambda s: ((s / "data").chmod(0o755), (s / "data" / "ids.npy").chmod(0o644)),
                             r"2 files and folders of .*/data, such as .*ids.npy, .*: chmod -R go-rwx .*/data"),
    "a state for the group": ("modes", lambda s: (s / "state").mkdir(0o750), r"chmod -R go-rwx .*/state"),
    "a folder of keys for all to write": ("modes", lambda s: s.chmod(0o777), "put another key or policy into .*: chmod go-w"),
    "another's file": ("started", lambda s: edit(s / "ray" / "environment", "(?<=SITE=).*", "/srv/mayo"), "names /srv/mayo, and not"),
    "a token for all to read": ("ray", lambda s: (s / "ray" / "token").chmod(0o604), "a token that is secret"),
    "no certificate": ("ray", lambda s: (s / "ray" / "node.crt").unlink(), "TLS that works"),
    "a certificate about to end": ("ray", expire, "ends in 2 days"),
}  # fmt: skip


def test_a_fit_site_passes_everything(made, capsys):
    with server(made / "ray") as port, socket.create_server(("127.0.0.1", 0)) as plain:
        reached = Settings(environment={}, address=f"127.0.0.1:{plain.getsockname()[1]}", now=time.time() - 5)
        assert ("network", True) in [one[:2] for one in examine(made / "site.toml", reached)]
        asked = beside(made / "site.toml", Settings(now=time.time() - 5))
        assert machine.ray(None, replace(asked, address=f"127.0.0.1:{port}")).startswith("a token and TLS")
    found = {one.what: one for one in examine(made / "site.toml", asked)}
    assert {what for what, one in found.items() if not one.fine} == {"network"} and found[
        "network"
    ].fine is None
    assert found["clock"].message == "+5 s off"
    assert main(["doctor", str(made / "site.toml")]) == 0 and "ready to join" in capsys.readouterr().out


@pytest.mark.parametrize("name", WRONG)
def test_one_thing_wrong_is_found_by_its_check_and_by_no_other(name, site):
    where, spoil, said = WRONG[name]
    spoil(site)
    wrong = [one for one in examine(site / "site.toml") if one.fine is False]
    assert [one.what for one in wrong] == where.split(), wrong
    assert all(re.search(said, one.message) for one in wrong), wrong


def test_what_is_too_little_or_too_far_off_or_out_of_reach(site):
    settings = beside(site / "site.toml")
    with socket.create_server(("127.0.0.1", 0)) as once:
        address = f"127.0.0.1:{once.getsockname()[1]}"
    for change, where, said in (
        ({"free_gb": 1e9}, "disk", "free some"),
        ({"memory_gb": 1e9}, "memory", "stop something"),
        ({"now": time.time() + 600}, "clock", r"-(600|5\d\d) s off"),
        ({"now": time.time() - 600}, "clock", r"\+6\d\d s off, and 60 s are allowed"),
        (
            {"environment": {VARIABLE: str(site / "site.toml")}},
            "ray",
            r"lacks token authentication .* and TLS",
        ),
    ):
        wrong = [one for one in examine(site / "site.toml", replace(settings, **change)) if one.fine is False]
        assert [one.what for one in wrong] == [where] and re.search(said, wrong[0].message)
    (started,) = [
        one for one in examine(site / "site.toml", replace(settings, environment={})) if one.what == "started"
    ]
    assert (
        started.fine is None
        and "start Ray with `fedjax-core node" in started.message
        and "for `ray start` set FEDJAX_CORE_SITE" in started.message
    )
    wrong = {
        one.what: one.message
        for one in examine(site / "site.toml", replace(settings, address=address))
        if one.fine is False
    }
    assert list(wrong) == ["network", "ray"] and all(
        "start Ray there first" in said for said in wrong.values()
    )


def test_bad_records_that_the_policy_leaves_out_are_no_fault(site):
    """The site opens without them, so the doctor does."""
    resave(
        site,
        lambda columns: bad_labels(
            {**columns, "x": np.where(np.arange(len(columns["x"]))[:, None] == 5, np.nan, columns["x"])}
        ),
    )
    edit(site / "policy.toml", "^paused", "max_bad_share = 0.5\npaused")
    found = {one.what: one for one in examine(site / "site.toml")}
    assert found["task"].fine and "4 bad records left out" in found["task"].message and found["data"].fine


def test_a_file_that_is_none_ends_with_one_and_says_so(site, capsys):
    (site / "policy.toml").write_text(
        (site / "policy.toml").read_text().replace("paused = false", "paused = true")
    )
    assert main(["doctor", str(site / "site.toml")]) == 1
    captured = capsys.readouterr()
    assert "NO policy" in captured.out and "not ready to join, for policy" in captured.err
    (site / "site.toml").write_text("name = 3")
    assert [one[:2] for one in examine(site / "site.toml")] == [("file", False)]


def test_what_is_measured_and_would_not_leave_is_named(site):
    assert "would not leave" not in found_by_the_task(site)
    edit(site / "policy.toml", '"accuracy", ', "")
    assert "of what it measures 'accuracy' would not leave (leaving.fields)" in found_by_the_task(site)


def found_by_the_task(site):
    return checks.CHECKS["task"](SiteFile.read(site / "site.toml"), Settings())
