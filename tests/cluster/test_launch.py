"""Launchers: what they print is what they start, and on one machine they start it, end it, and start it
again."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import psutil
import pytest

from fedjax_core.sites.transport import ray_security
from tests.conftest import REPOSITORY
from tests.run import small

LAUNCH = [sys.executable, str(REPOSITORY / "scripts" / "launch.py")]
SCRIPT = str(REPOSITORY / "tests" / "cluster" / "launched_script.py")
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(REPOSITORY),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
}


def dry(*words, script=("train me.py", "--rounds", "3")):
    done = subprocess.run(
        [*LAUNCH, *words, "--dry-run", "--", *script],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def commands(line):
    """(how the host is reached, the words run there) of a line, as two shells take it apart."""
    words = shlex.split(line)
    inner = words if words[0] == "bash" else shlex.split(words[-1])
    assert inner[:2] == ["bash", "-c"] and len(inner) == 3
    assert subprocess.run(["bash", "-n", "-c", inner[2]], capture_output=True).returncode == 0
    return words[:-1] if words[0] != "bash" else [], shlex.split(
        inner[2].removeprefix("exec 3<&0; ").partition(" & it=$!;")[0]
    )


def test_a_ray_cluster_is_a_head_its_workers_and_the_script(tmp_path):
    ray_security.equip(tmp_path, {"a": ["a"], "b": ["b"]})
    head, worker, driver = map(
        commands, dry("ray", "--hosts", "a", "b", "--secure", str(tmp_path), "--gpus", "2").splitlines()
    )
    assert [reached for reached, _ in (head, worker, driver)] == [
        ["ssh", "-o", "BatchMode=yes", host] for host in "aba"
    ]
    assert {
        "--head",
        "--node-ip-address=a",
        "--port=6379",
        "--include-dashboard=false",
        "--num-gpus=2",
        "--block",
    } < set(head[1])
    assert {"--address=a:6379", "--num-gpus=2", "--block"} < set(worker[1]) and "--head" not in worker[1]
    for (_, words), host in zip((head, worker, driver), "aba", strict=True):
        given = dict(word.split("=", 1) for word in words if word.startswith("RAY_"))
        assert ray_security.environment(
            tmp_path / host
        ).items() <= given.items() and not ray_security.lacking(given)
    assert "RAY_ADDRESS=a:6379" in driver[1] and driver[1][-6:] == [
        "--nodes",
        "2",
        "--",
        "train me.py",
        "--rounds",
        "3",
    ]
    secret = (tmp_path / "a" / "token").read_text().strip()
    assert secret not in dry("ray", "--hosts", "a", "b", "--secure", str(tmp_path))


def test_a_pod_is_a_process_a_host():
    found = [commands(line)[1] for line in dry("pod", "--hosts", "a", "b", "c", "--port", "99").splitlines()]
    for i, words in enumerate(found):
        at = words.index("process")
        assert words[at + 1 : at + 7] == ["--coordinator", "a:99", "--processes", "3", "--process", str(i)]
        assert words[at + 7 :] == ["--", "train me.py", "--rounds", "3"]
    (line,) = dry("tpu", "--name", "v5e", "--zone", "z").splitlines()
    words = shlex.split(line)
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "v5e"] and "--worker=all" in words
    assert shlex.split(words[-1].removeprefix("--command="))[-5:] == [
        "process",
        "--",
        "train me.py",
        "--rounds",
        "3",
    ]


FAKE_SLURM = """#!/bin/bash
echo "$(basename "$0") $*" >> "$LOG"
case "$(basename "$0")" in
    scontrol) if [ "$1" = show ]; then printf 'n1\\n'; sleep 0.1; printf 'n2\\nn3\\n'; fi ;;
    *) while [ $# -gt 0 ] && [ "${1#-}" != "$1" ]; do shift; done; exec "$@" ;;
esac
"""


@pytest.mark.parametrize("kind", ["ray", "pod"])
def test_a_batch_job_runs_ends_and_is_put_back_when_its_time_is_up(tmp_path, kind):
    """The batch file as Slurm would run it, with a Slurm, Ray and Python that only write down how they are
    called."""
    for name in ("scontrol", "srun"):
        (tmp_path / name).write_text(FAKE_SLURM)
    (tmp_path / "ray").write_text('#!/bin/bash\necho "ray $* by $RAY_AUTH_TOKEN_PATH" >> "$LOG"\n')
    (tmp_path / "python").write_text(
        '#!/bin/bash\necho "python $* on ${RAY_ADDRESS:-}" >> "$LOG"\n'
        'trap "sleep 0.3; echo saved >> $LOG; exit ${ENDS:-0}" TERM\nfor i in $(seq ${TIMES:-1}); do sleep 0.1; done\nexit ${ENDS:-0}\n'
    )
    for name in ("scontrol", "srun", "ray", "python"):
        (tmp_path / name).chmod(0o755)
    secure = ["--secure", "/etc/study"] if kind == "ray" else []
    text = dry(
        "slurm",
        "--nodes",
        "3",
        "--kind",
        kind,
        "--gpus",
        "2",
        "--python",
        str(tmp_path / "python"),
        "--partition",
        "long",
        *secure,
    )
    head = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"--nodes=3", "--gpus-per-node=2", "--partition=long", "--requeue", "--signal=B:TERM@120"} < set(
        head
    )
    assert f"--ntasks-per-node={2 if kind == 'pod' else 1}" in head
    job = tmp_path / "job.sh"
    job.write_text(text)
    assert subprocess.run(["bash", "-n", job]).returncode == 0

    def start(name, **more):
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {
            **os.environ,
            "PATH": path,
            "LOG": str(tmp_path / name),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-3]",
            **more,
        }
        return subprocess.Popen(["bash", job], env=environment)

    assert start("fine").wait(20) == 0 and start("failed", ENDS="3").wait(20) == 3
    # the nodes of this Ray, which does nothing, may write after the job has ended
    until = time.monotonic() + 20
    while (
        kind == "ray"
        and (tmp_path / "fine").read_text().count("\nray start") < 2
        and time.monotonic() < until
    ):
        time.sleep(0.05)
    fine = (tmp_path / "fine").read_text()
    # srun says it too
    assert "requeue" not in fine and fine.count("train me.py --rounds 3") == (1 if kind == "ray" else 2)
    if kind == "ray":
        assert (
            "ray start --head --port=6379" in fine and "--node-ip-address=n1" in fine and "on n1:6379" in fine
        )
        assert (
            "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --exclude=n1" in fine
            and "--address=n1:6379" in fine
        )
        assert fine.count(f"by /etc/study/{socket.gethostname().partition('.')[0]}/token") == 2
    process = start("cut", TIMES="300")
    while not (tmp_path / "cut").exists() or "python" not in (tmp_path / "cut").read_text():
        time.sleep(0.05)
    time.sleep(0.2)
    process.terminate()
    assert process.wait(20) == 0
    assert (tmp_path / "cut").read_text().splitlines()[-2:] == ["saved", "scontrol requeue 7"]


def test_what_is_missing_is_told():
    done = subprocess.run([*LAUNCH, "pod", "--hosts", "a"], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 2 and "no script to start" in done.stderr
    for protection in ([], ["--insecure", "--secure", "/etc/study"]):
        done = subprocess.run(
            [*LAUNCH, "ray", "--hosts", "a", *protection, "--", "x.py"],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and "or --insecure where nobody else can reach it" in done.stderr


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def launch(*words, pause=0.0, **options):
    environment = {**ENVIRONMENT, "PAUSE": str(pause)}
    return subprocess.Popen(
        [*LAUNCH, *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        **options,
    )


def leaves(file):
    with np.load(file) as found:
        return [found[name].tobytes() for name in found.files]


def addresses():
    """Of this machine."""
    families = (socket.AF_INET, socket.AF_INET6)
    return [
        a.address.partition("%")[0]
        for found in psutil.net_if_addrs().values()
        for a in found
        if a.family in families
    ]


def no_longer(pids):
    """Whether these processes are gone, within a while."""
    return not psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)[
        1
    ]


@pytest.mark.slow
def test_two_processes_of_a_pod_are_one(tmp_path):
    process = launch(
        "pod", "--hosts", "localhost", "localhost", "--port", free_port(), "--", SCRIPT, "pod", tmp_path
    )
    assert process.communicate(timeout=200) and process.returncode == 0
    first, second = (leaves(tmp_path / f"{i}-of-2.npz") for i in range(2))
    assert first == second
    sim = small.simulator()
    state, _ = sim.run_many(sim.init(jax.random.key(0)), [[0, 1, 3, 4, 5]] * 3)
    with np.load(tmp_path / "0-of-2.npz") as found:
        for name, x in zip(found.files, jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(found[name], x, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_process_of_a_pod_that_fails_ends_the_others():
    process = launch(
        "pod",
        "--hosts",
        "localhost",
        "localhost",
        "--port",
        free_port(),
        "--",
        SCRIPT,
        "pod",
        "/nowhere",
        stderr=subprocess.PIPE,
    )
    assert process.communicate(timeout=200) and process.returncode != 0


def over_ray(folder, name, pause=0.0):
    """Eight rounds with folder/name as their run_dir on two nodes of Ray, with token and TLS, on hosts that
    are reached as if by ssh."""
    here, ssh = socket.gethostname(), folder / "ssh"
    if not ssh.exists():
        ssh.write_text('#!/bin/bash\nshift\nexec bash -c "$*"\n')
        ssh.chmod(0o755)
        ray_security.equip(folder / "tls", {here: [here, "localhost", "127.0.0.1", *addresses()]})
    words = [
        "ray",
        "--hosts",
        here,
        here,
        "--cpus",
        "1",
        "--port",
        free_port(),
        "--ssh",
        ssh,
        "--secure",
        folder / "tls",
    ]
    return launch(*words, "--", SCRIPT, "ray", folder / name, "8", folder / f"{name}.npz", pause=pause)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run ends with that nothing ended."""
    folder = tmp_path_factory.mktemp("whole")
    process = over_ray(folder, "run")
    said = process.communicate(timeout=300)[0].splitlines()
    assert process.returncode == 0 and said[-1] == "finished 8" and "nodes 2" in said
    return leaves(folder / "run.npz")


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["asked", "killed"])
def test_a_run_over_ray_nodes_that_is_ended_goes_on_bit_for_bit(whole, tmp_path, ends):
    """SIGTERM has the script save and return; SIGKILL of the launcher, the driver, all workers and all of Ray
    leaves its checkpoints."""
    parts = over_ray(tmp_path, "run", pause=0.3)
    for line in parts.stdout:
        if line.strip() == "round 5":
            break
    tree = psutil.Process(parts.pid).children(recursive=True)
    assert sum("raylet" in process.name() for process in tree) == 2
    if ends == "asked":
        parts.send_signal(signal.SIGTERM)
        assert parts.communicate(timeout=60)[0].splitlines()[-1].startswith("interrupted")
        assert parts.returncode == 0
    else:
        parts.kill()
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        parts.communicate()
        assert not (tmp_path / "run.npz").exists()
    assert no_longer([process.pid for process in tree])
    again = over_ray(tmp_path, "run")
    said = again.communicate(timeout=300)[0].splitlines()
    assert said[-1] == "finished 8" and "round 0" not in said and "round 7" in said
    assert leaves(tmp_path / "run.npz") == whole
