"""The whole consortium on this machine: its numbers are the simulator's, whoever is killed, and it is closed
to the outside."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest

from fedjax_core.cli import main
from fedjax_core.consortium import box
from fedjax_core.run.checkpoint import read
from fedjax_core.sites.audit import show
from tests.conftest import REPOSITORY
from tests.consortium import csv_study, study
from tests.consortium.failpoints import POINTS

pytestmark = pytest.mark.slow


def run(folder, failpoints=(), **settings):
    """(what came of it, what it said)."""
    said = []
    os.environ["FAILPOINTS"] = json.dumps(failpoints)
    settings = {"rounds": study.ROUNDS, "study": "tests.consortium.study:scaffold", **settings}
    found = box.run(
        folder, site_files=folder.parent / "files", quorum=len(study.NAMES), checkpoint_every=2,
        say=said.append, lead="tests.consortium.lead_script", **settings,
    )  # fmt: skip
    assert not [
        one for one in psutil.Process().children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE
    ]
    return found, "\n".join(said)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    found = tmp_path_factory.mktemp("box")
    study.site_files(found / "files")
    return found


@pytest.fixture(scope="module")
def undisturbed(home):
    """The last checkpoint of a run that nothing happened to."""
    os.chdir(REPOSITORY)
    found, said = run(home / "undisturbed")
    assert found.restarts == {} and "all audit logs are as they were written" in said
    return last(home / "undisturbed")


def last(folder):
    return read(folder / "coordinator" / "run" / "checkpoints" / f"{study.ROUNDS:08d}")


def assert_same_bits(one, other):
    assert one.leaves == other.leaves  # names, dtypes, shapes and digests


def test_the_box_ends_where_the_simulator_ends(undisturbed):
    state = study.simulated()
    expected = {
        "server" + jax.tree_util.keystr(path): x
        for path, x in jax.tree_util.tree_leaves_with_path(state.server)
    }
    found = {
        leaf.name: x
        for leaf, x in zip(undisturbed.leaves, undisturbed.arrays, strict=True)
        if leaf.name in expected or "server" in leaf.name
    }
    assert len(found) == len(expected) > 2
    for (name, x), y in zip(found.items(), expected.values(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6, err_msg=name)


def test_the_coordinator_is_killed_at_every_point(home, undisturbed):
    rounds = {"before broadcast": 1, "after 1 result": 2, "after aggregation": 3}
    points = [[point, rounds.get(point, 4), "coordinator"] for point in POINTS]
    found, said = run(home / "coordinator-killed", points)
    assert found.restarts == {"coordinator": len(POINTS)} and said.count("SIGKILL") == len(POINTS)
    print(said)
    assert_same_bits(last(home / "coordinator-killed"), undisturbed)


def test_a_site_and_a_node_are_killed(home, undisturbed):
    found, said = run(home / "site-killed", [["before broadcast", 2, "site"], ["after 1 result", 4, "node"]])
    print(said)
    assert found.restarts == {"mayo": 1}  # Ray starts a site again by itself
    assert_same_bits(last(home / "site-killed"), undisturbed)


def test_everything_is_killed_at_once(home, undisturbed):
    folder, began = home / "all-killed", time.monotonic()
    command = [
        sys.executable, "-c", "from pathlib import Path; from tests.consortium.test_box import run; import sys;"
        "run(Path(sys.argv[1]), [['after 1 result', 3, 'everything']])", str(folder),
    ]  # fmt: skip
    killed = subprocess.run(command, cwd=REPOSITORY, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    print(f"killed after {time.monotonic() - began:.1f} s")
    _, said = run(folder)
    print(said)
    assert_same_bits(last(folder), undisturbed)


def test_a_study_that_prepares_its_columns_runs_with_the_policies_of_the_box(home):
    found, said = run(home / "prepared", study="tests.consortium.study:prepared", rounds=2)
    assert found.rounds == 2 and found.restarts == {}
    assert (
        "sums of columns: range for Rescale('x'); categories for OrdinalEncode('y') (a range is of single persons"
        in said
    )


def test_a_bad_label_an_absent_site_and_another_unit_are_said_by_name_before_the_first_round(
    tmp_path, monkeypatch, caplog
):
    """Over data of one's own in CSV files; what is mended while the box waits is taken up."""
    files, said = (
        csv_study.site_files(tmp_path, monkeypatch, bad_label="charite", absent="oslo", other_unit="mayo"),
        [],
    )

    def say(line):
        said.append(" ".join(line.split()))
        if "waiting: a run cannot begin" in line:
            csv_study.write(files, "charite")
            csv_study.write(files, "oslo")

    found = box.run(tmp_path / "box", site_files=files, study=csv_study.STUDY, rounds=1, say=say)
    assert found.rounds == 1 and found.took_part == dict.fromkeys(csv_study.NAMES, 1)
    unfit = [line for line in caplog.messages if "will take no part until that is mended" in line]
    assert [
        "charite" in unfit[0] and "'y'" in unfit[0] and "its row 12" in unfit[0],
        "oslo.csv" in unfit[1],
        len(unfit),
    ] == [True, True, 2]
    first = said.index(next(line for line in said if line.startswith("round 1 of 1")))
    (waiting,) = [
        line
        for line in said[:first]
        if "waiting: a run cannot begin before 3 of its 3 sites" in line and "charite: " in line
    ]
    assert "oslo: site oslo could not start: FileNotFoundError" in waiting and "mayo: " not in waiting
    assert f"note errors.log of a site is in {tmp_path}/box/sites/NAME/state" in said[:first]
    (unit,) = [line for line in said[:first] if "another unit" in line]
    assert unit.startswith("note mayo has a mean of 'crea' in 'x' far from that of the other sites")


def test_ctrl_c_saves_and_stops_and_the_same_command_goes_on(home, tmp_path):
    command = [
        sys.executable,
        "-m",
        "fedjax_core",
        "consortium",
        "run",
        str(tmp_path / "box"),
        "--sites",
        "2",
        "--rounds",
        "100000",
    ]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "round     1 of" in line:
            break
    whole = psutil.Process(process.pid).children(recursive=True)
    assert len(whole) > 6
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1 and "goes on from here" in err and "Traceback" not in err
    psutil.wait_procs(whole, timeout=10)
    assert [one for one in whole if one.is_running()] == []
    rounds = [int(path.name) for path in (tmp_path / "box" / "coordinator" / "run" / "checkpoints").iterdir()]
    assert max(rounds) > 1
    assert main(["consortium", "run", str(tmp_path / "box"), "--rounds", str(max(rounds) + 1)]) == 0
    entries = [entry.round for entry in show(tmp_path / "box" / "coordinator" / "audit", what="round")]
    assert entries[-1] == max(rounds) and entries[0] == 0


def test_it_listens_on_loopback_alone_and_takes_nobody_without_certificate(home, tmp_path):
    """Every port of every process, but that of a node's agent for runtime environments, which is plain HTTP
    and says so in the docs."""
    checked = []

    def look(line):
        if "Ray nodes" not in line:
            return
        for process in psutil.Process().children(recursive=True):
            for one in process.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    assert one.laddr.ip.removeprefix("::ffff:") == "127.0.0.1"
                    checked.append((process.name(), speaks(one.laddr.port)))

    box.run(tmp_path / "box", sites=2, rounds=1, say=look)
    assert {name for name, said in checked if said == "plain"} <= {"ray::RuntimeEnvAgent"}
    assert {name for name, said in checked if said == "wants a certificate"} >= {"gcs_server", "raylet"}
    assert {said for _, said in checked} <= {"plain", "wants a certificate"}


def speaks(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(plain) as secure:
            return "anybody's TLS" if secure.recv(1) else "wants a certificate"
    except ssl.SSLError as error:
        return "wants a certificate" if "ALERT" in str(error.reason) else "plain"
    except ConnectionResetError:
        return "wants a certificate"


def test_what_cannot_be_is_told_before_anything_starts(tmp_path):
    def refused(said, **settings):
        with pytest.raises(ValueError, match=said):
            box.run(tmp_path / "box", **settings)

    refused("2 to 16 sites", sites=1)
    refused("say which study", site_files=tmp_path)
    refused("names no function", study="nothing")
