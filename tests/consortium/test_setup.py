"""A consortium's folder is made once, and keeps what it was made with."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.cli import main
from fedjax_core.consortium import lead
from fedjax_core.consortium.processes import Failed, Process, Processes
from fedjax_core.consortium.setup import Layout, prepare
from fedjax_core.files import open_to_others
from fedjax_core.sites.doctor.examination import examine
from fedjax_core.sites.own_file import VARIABLE
from fedjax_core.sites.policy import SAFE, Policy
from fedjax_core.sites.protocol.report import PARTIAL
from fedjax_core.sites.protocol.request import Requests, addresses
from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.wire.envelope import header_of
from fedjax_core.sites.wire.identity import Roster, SiteKey
from tests.consortium import csv_study, study


def test_a_folder_keeps_what_it_was_made_with_but_for_more_rounds(tmp_path):
    folder = Layout(tmp_path / "box")
    plan, new = prepare(folder, sites=2, rounds=3)
    assert new and prepare(folder, sites=2, rounds=5) == (replace(plan, rounds=5), False)
    with pytest.raises(
        ValueError, match=r"was made with 2 sites, not 4 and quorum 0, not 2: choose another folder"
    ):
        prepare(folder, sites=4, quorum=2)
    (folder.coordinator / "run").mkdir()
    records = [{"kind": "train", "round": 1}, {"kind": "train", "round": 2}, {"kind": "eval", "round": 2}]
    (folder.coordinator / "run" / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(ValueError, match=r"has 2 rounds already, more than 1: ask for as many"):
        prepare(folder, rounds=1)
    assert prepare(folder, rounds=2)[0].rounds == 2 and prepare(folder)[0].rounds == 2


def test_a_folder_and_all_in_it_is_for_its_owner_alone(tmp_path):
    before = os.umask(0o022)
    try:
        prepare(Layout(tmp_path / "runs" / "box"), sites=2)
    finally:
        os.umask(before)
    assert (
        not list(open_to_others(tmp_path / "runs"))
        and (tmp_path / "runs" / "box" / "sites" / "hospital-1" / "site.toml").exists()
    )


def test_a_coordinator_waits_for_sites_that_are_away_when_the_last_model_is_evaluated(
    tmp_path, monkeypatch, capsys
):
    folder, evaluated = Layout(tmp_path / "box"), []
    prepare(folder, sites=2, rounds=1)

    class Federation:
        def __init__(self, *about, **settings):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def evaluate(self, state):
            evaluated.append(state)
            if len(evaluated) < 3:
                raise lead.Paused("1 of 2 sites reported")
            return fc.Evaluation({"loss": 0.5}, {"loss": np.array([0.25, 0.75])}, np.array([4, 4]))

    monkeypatch.setattr(lead, "Federation", Federation)
    monkeypatch.setattr(
        lead,
        "fit",
        lambda *about, **settings: SimpleNamespace(stopped="finished", state=SimpleNamespace(round=1)),
    )
    monkeypatch.setattr(lead, "_AWAY_SECONDS", 0.0)
    assert lead.lead(folder, None) == 0 and len(evaluated) == 3
    assert capsys.readouterr().err.count("1 of 2 sites reported") == 1  # once for as long as it lasts
    assert json.loads((folder.coordinator / "result.json").read_text())["pooled"] == {"loss": 0.5}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"checkpoint_every": 0}, "checkpoint_every must be a whole number of at least 1, got 0"),
        ({"sites": 2, "quorum": 3}, "quorum=3 of 2 sites"),
        (
            {"sites": 2, "train_seconds": 600.0},
            "train_seconds=600, and a round has 600 s: ask for less; 0 is no limit",
        ),
        ({"study": "nowhere:study"}, "no module 'nowhere' here"),
        ({"arguments": {"rate": 1}}, "does not take the arguments"),
    ],
)
def test_what_cannot_be_leaves_no_folder_behind(settings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        prepare(Layout(tmp_path / "box"), **settings)
    assert not (tmp_path / "box").exists()


PREPARED = "tests.consortium.study:prepared"
FIELDS = [
    "weight",
    "examples",
    "data",
    *PARTIAL,
    "accuracy",
    "categories",
    "loss",
    "range",
    "uplink_kept",
    "uplink_norm",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A box of a study that prepares its columns."""
    home = tmp_path_factory.mktemp("prepared")
    study.site_files(home / "files")
    folder = Layout(home / "box")
    return folder, prepare(folder, site_files=home / "files", study=PREPARED)[0]


def test_policies_let_leave_what_the_study_prepares_by(prepared):
    folder, plan = prepared
    text = (folder.site("mayo") / "policy.toml").read_text()
    assert "# range: sums for Rescale('x')\n# categories: sums for OrdinalEncode('y')\n" in text
    assert sorted(Policy.read(folder.site("mayo") / "policy.toml").leaving.fields) == sorted(FIELDS)
    files, key = (
        [folder.site(name) / "site.toml" for name in plan.sites],
        SiteKey.load(folder.coordinator / "coordinator.key"),
    )
    built = study.prepared()
    with fc.Federation(
        built.round,
        files,
        batch_size=built.batch_size,
        epochs=built.epochs,
        prepare=built.prepare,
        transport="in-process",
        key=key,
    ) as fed:
        _, seen = fed.run(fed.init(jax.random.key(0)), [0, 1, 2])
    everyone = np.concatenate([columns["x"] for columns in study.columns()])
    assert float(seen["clients"]) == 3
    np.testing.assert_allclose(fed.prepared.parameters[0]["low"], everyone.min(axis=0))


def policy_says(file):
    """What the doctor says of a policy that is fit."""
    return next(one.message for one in examine(file) if one.what == "policy" and one.fine)


def test_the_doctor_says_what_a_policy_lacks_for_the_preprocessing(prepared, tmp_path):
    shutil.copytree(prepared[0].site("mayo"), tmp_path / "mayo")
    (tmp_path / "mayo" / "ray" / "environment").write_text(f"{VARIABLE}={tmp_path / 'mayo' / 'site.toml'}\n")
    path, file = tmp_path / "mayo" / "policy.toml", tmp_path / "mayo" / "site.toml"

    def wrong():
        return {one.what: one.message for one in examine(file) if one.fine is False}

    assert wrong() == {}
    assert "however few" not in policy_says(file)
    cell = re.sub(r"\ncell = \d+", "", path.read_text())
    path.write_text(cell)
    assert "sums of columns of however few examples leave: set minimum.cell, such as 10" in policy_says(file)
    whole, about = path.read_text(), file.read_text()
    for gone, said in (
        (
            ', "range"',
            r"does not let leave 'range', which Rescale\('x'\) needs, so the run would pause .* \(a range is of single persons\)",
        ),
        (
            '"categories", ',
            r"'categories', which OrdinalEncode\('y'\) needs, .* add it to leaving.fields after review",
        ),
        ('"weight", ', "does not let 'weight' leave, which every report has"),
    ):
        assert gone in whole
        path.write_text(whole.replace(gone, ""))
        assert list(wrong()) == ["policy"] and re.search(said, wrong()["policy"])
    file.write_text(about.replace('policy = "policy.toml"\n', ""))
    assert (
        list(wrong()) == ["policy"]
        and "leaves only where a policy of the site's own names it" in wrong()["policy"]
    )


def test_policies_that_are_made_have_minimums_and_a_site_below_them_is_named(tmp_path, caplog):
    files, folder = study.site_files(tmp_path / "files"), Layout(tmp_path / "box")
    alone = {name: x[:1] for name, x in study.columns()[2].items()}
    shutil.rmtree(files / "mayo-data")
    fc.Clients.from_list([alone], ids=["mayo"]).save(files / "mayo-data")
    prepare(folder, site_files=files, study=PREPARED)
    assert {Policy.read(folder.site(name) / "policy.toml").minimum for name in study.NAMES} == {SAFE}
    assert (
        "mayo will take no part until that is mended: 1 examples, and the policy asks for 10 (minimum.examples)"
        in caplog.text
    )
    assert "charite" not in caplog.text
    about, key = (
        SiteFile.read(folder.site("mayo") / "site.toml"),
        SiteKey.load(folder.coordinator / "coordinator.key"),
    )
    # nor without a policy, where the site has its study
    for one in (
        about,
        replace(about, policy=None, folder=tmp_path / "none"),
    ):
        with Site(one) as site:
            requests = Requests("run", site.context.study.hash, addresses(["mayo"]), key, lambda *said: None)
            for kind in ("describe", "measure"):
                said = header_of(site.handle(requests.write(kind, 0, to=["mayo"])))
                assert (said.kind, said.fields["code"]) == ("refusal", "declined")


def test_a_policy_brought_along_that_keeps_the_sums_is_told_before_anything_is_made(tmp_path):
    files = study.site_files(tmp_path / "files")
    (files / "mayo").mkdir()
    (files / "mayo" / "policy.toml").write_text(
        'site = "mayo"\n[leaving]\nfields = ["weight", "examples", "data", "categories"]\n'
    )
    with open(files / "mayo.toml", "a") as file:
        file.write('policy = "mayo/policy.toml"\n')
    with pytest.raises(
        ValueError,
        match=r"mayo/policy.toml does not let leave 'range', which Rescale\('x'\) of the study needs",
    ):
        prepare(Layout(tmp_path / "box"), site_files=files, study=PREPARED)
    assert not (tmp_path / "box").exists()


def test_arguments_that_are_no_json_are_refused_by_name(tmp_path, capsys):
    for text in ("{lr: 3}", "[3]", "3"):
        assert main(["consortium", "run", str(tmp_path / "box"), "--arguments", text]) == 1
        assert (
            f"--arguments should be a JSON object, such as '{{\"lr\": 0.05}}'; got '{text}'"
            in capsys.readouterr().err
        )


def test_a_node_that_is_killed_as_it_starts_is_told_of(tmp_path):
    log = tmp_path / "mayo.log"
    log.write_text("starting\n")
    process = subprocess.Popen(
        ["sh", "-c", "kill -9 $$"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with (
        process,
        pytest.raises(
            Failed, match=r"the Ray node of mayo did not start \(SIGKILL\):\nstarting\n.*mayo.log says more"
        ),
    ):
        Processes(Layout(tmp_path))._hear(Process("mayo", log, process))


def test_the_last_words_of_a_part_are_its_error_and_not_our_code(tmp_path):
    log = tmp_path / "coordinator.log"
    log.write_text(
        'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    fail()\n\nValueError: too few rounds\n'
    )
    assert Process("coordinator", log, None).last_words() == "ValueError: too few rounds"


def test_what_will_keep_a_site_from_taking_part_is_said_by_name_before_anything_starts(
    tmp_path, monkeypatch, caplog
):
    """A label that the study has no place for, and data that are not there, of sites whose own function reads
    CSV files."""
    files = csv_study.site_files(tmp_path, monkeypatch, bad_label="charite", absent="oslo")
    plan, new = prepare(Layout(tmp_path / "box"), site_files=files, study=csv_study.STUDY)
    assert new and plan.sites == csv_study.NAMES
    said = {
        record.args[0]: record.getMessage()
        for record in caplog.records
        if "take no part" in record.getMessage()
    }
    assert said.keys() == {"charite", "oslo"}
    assert re.search(
        r"the label in column 'y' .*\(id 'charite'\), its row 12, is not from 0 to 1", said["charite"]
    )
    assert (
        "No such file" in said["oslo"]
        and "oslo.csv" in said["oslo"]
        and "sites/oslo/site.toml" in said["oslo"]
    )
    shutil.rmtree(tmp_path / "box")
    (files / "data" / "charite.csv").unlink()  # of the first, too
    assert prepare(Layout(tmp_path / "box"), site_files=files, study=csv_study.STUDY)[1]


def test_a_column_that_the_study_reads_and_no_site_has_is_named(tmp_path, monkeypatch):
    files = csv_study.site_files(tmp_path, monkeypatch)
    whole = csv_study._read

    def renamed(name):
        rows = whole(name).columns
        return fc.Clients.from_list([{"x": rows["x"], "dead": rows["y"]}], features={"x": ["age", "crea"]})

    monkeypatch.setattr(csv_study, "_read", renamed)
    with pytest.raises(
        ValueError, match="looks up 'y', which is not there: the data have the columns 'dead', 'x'"
    ):
        prepare(Layout(tmp_path / "box"), site_files=files, study=csv_study.STUDY)


def test_a_study_that_lies_where_the_command_is_given_is_found(tmp_path, monkeypatch, capsys):
    """As the console script is started with the folder of scripts in the place of this one."""
    (tmp_path / "my_own_study.py").write_text("def study():\n    raise ValueError('it was called')\n")
    (tmp_path / "a.toml").write_text('name = "a"\ndata = "a"\n')
    (tmp_path / "b.toml").write_text('name = "b"\ndata = "b"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    assert main(["consortium", "run", "box", "--site-files", ".", "--study", "my_own_study:study"]) == 1
    assert "it was called" in capsys.readouterr().err


def test_a_hospital_far_larger_than_the_others_is_agreed_on_in_the_box_of_them_all(tmp_path):
    files = study.site_files(tmp_path / "files")
    many = {name: np.resize(x, (7000, *x.shape[1:])) for name, x in study.columns()[2].items()}
    shutil.rmtree(files / "mayo-data")
    fc.Clients.from_list([many], ids=["mayo"]).save(files / "mayo-data")
    prepare(Layout(tmp_path / "box"), site_files=files, study=PREPARED)
    assert Roster.read(tmp_path / "box" / "coordinator" / "roster.toml").examples == {"mayo": 7000}
