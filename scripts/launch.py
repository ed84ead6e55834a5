"""Starts a script on several machines, and starts it again: over a Ray cluster, through Slurm, or as
processes of `jax.distributed`.

    python scripts/launch.py ray --hosts a b c --secure /etc/study -- train.py --rounds 100      Ray on a (its head), b, c; train.py on a
    python scripts/launch.py pod --hosts a b -- train.py                                         a process a host, in one jax.distributed
    python scripts/launch.py tpu --name v5e-16 --zone us-west4-a -- train.py                     the same on a TPU pod, by gcloud
    python scripts/launch.py slurm --nodes 4 --kind ray --secure /etc/study -- train.py          the same as a batch job, or --kind pod

With --dry-run the commands are printed, to the letter as they would run, and nothing is started. Hosts are
reached by ssh, without a password; `localhost` needs none. Repository, Python and working folder have the
same paths everywhere.

The script needs nothing of this. Under `ray` and `slurm --kind ray` it finds RAY_ADDRESS set, which
`fc.ClusterSimulator` goes by; its run_dir is on the first host, and `fc.fit` goes on from it when it is
launched again, as often as --restarts says, or by hand:

    with fc.ClusterSimulator(composed, clients, workers=3, shares=3, batch_size=20, epochs=1) as sim:        # train.py
        fc.fit(sim, 100, cohorts, run_dir="runs/a")

Under `pod`, `tpu` and `slurm --kind pod` it runs in every process, after `jax.distributed.initialize`, with
`jax.devices()` of all. There `fc.fit` takes no run_dir: what is to be kept, process 0 saves.

    mesh = jax.make_mesh((jax.device_count(),), ("lanes",))                                                  # train.py
    sim = fc.Simulator(composed, clients, batch_size=20, epochs=1, lanes=jax.device_count(), mesh=mesh)

Ctrl-C and SIGTERM reach the script as SIGTERM, at which `fc.fit` saves and returns; then Ray is ended. If
this process is killed, all end at once, and the next launch goes on from the last checkpoint.

Ray runs what whoever reaches it sends, so --secure names a folder with a folder a host, which has its
certificate and the token:

    fedjax-core certificates make /etc/study a=a,10.0.0.1 b=b,10.0.0.2 c=c,10.0.0.3                          copy /etc/study/b to b alone

Only their paths are in a command. --insecure does without, in plain text: for networks that are nobody
else's."""

import logging
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.extras import SubcommandApp

app = SubcommandApp()
HERE = Path(__file__).resolve()

# What a host runs: the command, which ends when the one who started it does, however that ends: its end of the
# pipe is then closed.
_TIED = "exec 3<&0; {command} & it=$!; {{ cat <&3 >/dev/null; kill $it 2>/dev/null; }} & wait $it"


@dataclass(frozen=True)
class Step:
    """One command on one host."""

    host: str
    command: str

    def line(self, ssh: str) -> str:
        """As a shell on this machine would be told it."""
        text = _TIED.format(command=self.command)
        here = f"bash -c {shlex.quote(text)}"
        return here if self.host == "localhost" else f"{ssh} {self.host} {shlex.quote(here)}"


@dataclass(frozen=True)
class Plan:
    """Steps that run beside it for as long as the work does, and the work."""

    beside: Sequence[Step]
    work: Sequence[Step]

    def run(self, ssh: str, restarts: int, dry_run: bool) -> int:
        """The exit status of the work: that of its first step that failed; begun again where it fails, so
        often."""
        if dry_run:
            print("\n".join(step.line(ssh) for step in [*self.beside, *self.work]))
            return 0
        asked: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: asked.append(number))
        for attempt in range(restarts + 1):
            status = self._once(ssh, asked)
            if status == 0 or asked:
                break
            _say(f"attempt {attempt + 1} of {restarts + 1} ended with status {status}")
        return status

    def _once(self, ssh: str, asked: list[int]) -> int:
        beside = [_start(step.line(ssh)) for step in self.beside]
        work = [_start(step.line(ssh)) for step in self.work]
        lost: set[int] = set()
        try:
            # without the first, none can work
            while any(process.poll() is None for process in work) and not asked and 0 not in lost:
                if any(process.poll() for process in work):
                    break  # the others would wait for it for ever
                for i, process in enumerate(beside):
                    if process.poll() is not None and i not in lost:
                        lost.add(i)
                        _say(
                            f"on {self.beside[i].host} ended with status {process.returncode}: {self.beside[i].command}"
                        )
                time.sleep(0.1)
        finally:
            # the work needs the others to save, and they the first to leave it
            for processes in (
                work,
                beside[1:],
                beside[:1],
            ):
                for process in processes:
                    assert process.stdin is not None
                    process.stdin.close()
                for process in processes:
                    process.wait()
        return next((process.returncode for process in work if process.returncode), int(0 in lost))


def _say(text: str) -> None:
    print("launch:", text, file=sys.stderr, flush=True)


def _start(line: str) -> subprocess.Popen:
    # In a session of its own: a Ctrl-C at the keyboard is for this process, which passes it on.
    return subprocess.Popen(
        line, shell=True, executable="/bin/bash", stdin=subprocess.PIPE, start_new_session=True
    )


def _told(words: Sequence[str], variables: Mapping[str, str], folder: Path) -> str:
    """The words as a shell command, in this folder and with these variables."""
    set_ = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    return f"env -C {shlex.quote(str(folder))} {' '.join([*set_, shlex.join(words)])}"


def _security(secure: Path | None, insecure: bool, host: str) -> dict[str, str]:
    """The variables of Ray on this host, the same for its nodes and the script: left to itself, Ray chooses
    for each command anew."""
    from fedjax_core.sites.transport import ray_security

    if (secure is None) != insecure:
        raise SystemExit(
            "Ray runs what whoever reaches it sends: give --secure FOLDER, made by `fedjax-core certificates make FOLDER HOST=HOST ...`, "
            "or --insecure where nobody else can reach it, and not both"
        )
    return (
        {"RAY_AUTH_MODE": "disabled", "RAY_USE_TLS": "0"}
        if secure is None
        else ray_security.environment(secure / host)
    )


def _ray(python: str, *words: str) -> list[str]:
    return [str(Path(python).with_name("ray")), "start", *words, "--disable-usage-stats", "--block"]


@app.command
def ray(
    hosts: tuple[str, ...],
    port: int = 6379,
    cpus: int | None = None,
    gpus: int | None = None,
    secure: Path | None = None,
    insecure: bool = False,
    python: str = sys.executable,
    ssh: str = "ssh -o BatchMode=yes",
    restarts: int = 0,
    dry_run: bool = False,
) -> int:
    """Starts Ray on hosts, the first being its head, and the script there; ends Ray when the script has
    ended.

    Args:
        hosts: Names or addresses by which all reach one another.
        port: Where the head listens.
        cpus: Cores a host; all of them where not given.
        gpus: GPUs a host; all of them where not given.
        secure: Folder with a folder a host, from `fedjax-core certificates make`.
        insecure: No token and no TLS.
        python: On every host; `ray` is beside it.
        ssh: How a host is reached.
        restarts: How often to begin again where the script, or all of Ray, fails.
        dry_run: Prints the commands and starts nothing.
    """
    head, address = hosts[0], f"{'127.0.0.1' if hosts[0] == 'localhost' else hosts[0]}:{port}"
    has = [f"--num-{what}={n}" for what, n in (("cpus", cpus), ("gpus", gpus)) if n is not None]
    beside = []
    for i, host in enumerate(hosts):
        first = [
            "--head",
            f"--node-ip-address={address.rpartition(':')[0]}",
            f"--port={port}",
            "--include-dashboard=false",
        ]
        words = _ray(python, *(first if i == 0 else [f"--address={address}"]), *has)
        beside.append(Step(host, _told(words, _security(secure, insecure, host), Path.cwd())))
    work = [python, str(HERE), "driver", "--nodes", str(len(hosts)), "--", *SCRIPT]
    environment = {**_security(secure, insecure, head), "RAY_ADDRESS": address}
    return Plan(beside, [Step(head, _told(work, environment, Path.cwd()))]).run(ssh, restarts, dry_run)


@app.command
def pod(
    hosts: tuple[str, ...],
    port: int = 1234,
    python: str = sys.executable,
    ssh: str = "ssh -o BatchMode=yes",
    restarts: int = 0,
    dry_run: bool = False,
) -> int:
    """Starts the script as one process a host, in one `jax.distributed`; where one fails, all end.

    Args:
        hosts: Names or addresses; the first is the coordinator of JAX.
        port: Where it listens.
        python: On every host.
        ssh: How a host is reached.
        restarts: How often to begin again where a process fails.
        dry_run: Prints the commands and starts nothing.
    """
    steps = []
    for i, host in enumerate(hosts):
        place = ["--coordinator", f"{hosts[0]}:{port}", "--processes", str(len(hosts)), "--process", str(i)]
        steps.append(Step(host, _told([python, str(HERE), "process", *place, "--", *SCRIPT], {}, Path.cwd())))
    return Plan([], steps).run(ssh, restarts, dry_run)


@app.command
def tpu(name: str, zone: str, python: str = "python3", dry_run: bool = False) -> int:
    """Starts the script on every host of a TPU pod, which tells JAX of itself.

    Args:
        name: Of the TPU VM.
        zone: Where it is.
        python: On every host.
        dry_run: Prints the command and starts nothing.
    """
    command = _told([python, str(HERE), "process", "--", *SCRIPT], {}, Path.cwd())
    words = [
        "gcloud",
        "compute",
        "tpus",
        "tpu-vm",
        "ssh",
        name,
        f"--zone={zone}",
        "--worker=all",
        f"--command={command}",
    ]
    if dry_run:
        print(shlex.join(words))
        return 0
    return subprocess.call(words)


_SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={tasks}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={time}
#SBATCH --output={name}-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@{grace}
{options}set -euo pipefail
cd {folder}
{start}
work=$!
cut_short=
trap 'cut_short=1; kill -TERM "$work"' TERM
status=0
wait "$work" || status=$?
while kill -0 "$work" 2>/dev/null; do status=0; wait "$work" || status=$?; done   # a signal ends a wait, not the work
if [ -n "$cut_short" ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""

_SLURM_RAY = """hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${{hosts%%$'\\n'*}}   # not by a pipe into head, which ends the job where scontrol is still writing
{security}srun --nodes=1 --ntasks=1 --nodelist="$head" {first} &
{others}export RAY_ADDRESS="$head:{port}"
{work} &"""


@app.command
def slurm(
    nodes: int,
    kind: Literal["ray", "pod"],
    cpus: int = 8,
    gpus: int = 0,
    hours: float = 24,
    name: str = "fedjax-core",
    partition: str | None = None,
    account: str | None = None,
    grace: int = 120,
    port: int = 6379,
    secure: Path | None = None,
    insecure: bool = False,
    python: str = sys.executable,
    dry_run: bool = False,
) -> int:
    """Submits the script as a job, which puts itself into the queue again when its time is up, and goes on
    from its run_dir.

    Args:
        nodes: How many.
        kind: "ray" for workers of Ray, "pod" for processes of jax.distributed, one a GPU or one a node.
        cpus: Cores a process.
        gpus: A node.
        hours: The most the job may take at a time.
        name: Of the job, and of its log.
        partition: Of the cluster.
        account: Who pays.
        grace: Seconds before the end at which the script is told to save: more than a round takes.
        port: Of Ray's head.
        secure: Folder with a folder a host, from `fedjax-core certificates make`.
        insecure: No token and no TLS.
        python: On every node; `ray` is beside it.
        dry_run: Prints the batch file and submits nothing.
    """
    asked = {"partition": partition, "account": account, "gpus-per-node": gpus or None}
    options = "".join(f"#SBATCH --{option}={value}\n" for option, value in asked.items() if value is not None)
    if kind == "ray":
        has = [f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        first = (
            shlex.join(_ray(python, "--head", f"--port={port}", "--include-dashboard=false", *has))
            + ' --node-ip-address="$head"'
        )
        other = shlex.join(_ray(python, *has)) + f' --address="$head:{port}"'
        # Each host names its own files, so its shell puts its name in.
        files = {
            variable: value.replace("@HOST@", "$(hostname -s)")
            for variable, value in _security(secure, insecure, "@HOST@").items()
        }
        exports = "".join(f'export {variable}="{value}"; ' for variable, value in files.items())
        first, other = (f"bash -c {shlex.quote(exports)}'exec '{shlex.quote(c)}" for c in (first, other))
        more = (
            f'srun --nodes={nodes - 1} --ntasks={nodes - 1} --ntasks-per-node=1 --exclude="$head" {other} &\n'
            if nodes > 1
            else ""
        )
        work = shlex.join([python, str(HERE), "driver", "--nodes", str(nodes), "--", *SCRIPT])
        security = "export head\n" + (exports.replace("; ", "\n"))
        start = _SLURM_RAY.format(first=first, others=more, work=work, port=port, security=security)
    else:
        start = f"srun {shlex.join([python, str(HERE), 'process', '--', *SCRIPT])} &"
    text = _SLURM.format(
        name=name,
        nodes=nodes,
        tasks=max(1, gpus) if kind == "pod" else 1,
        cpus=cpus,
        time=f"{int(hours)}:{int(hours % 1 * 60):02d}:00",
        grace=grace,
        options=options,
        folder=shlex.quote(str(Path.cwd())),
        start=start,
    )
    if dry_run:
        print(text, end="")
        return 0
    return subprocess.run(["sbatch"], input=text, text=True, check=False).returncode


@app.command
def driver(nodes: int, seconds: float = 300) -> int:
    """Runs the script here when the Ray at RAY_ADDRESS has so many nodes; the other commands call this.

    Args:
        nodes: How many to wait for.
        seconds: How long at most.
    """
    import ray as cluster

    address, end, seen = os.environ["RAY_ADDRESS"], time.monotonic() + seconds, 0
    while not _listens(address) and time.monotonic() < end:
        time.sleep(0.2)
    if _listens(address):
        cluster.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        while (seen := sum(node["Alive"] for node in cluster.nodes())) < nodes and time.monotonic() < end:
            time.sleep(0.2)
        cluster.shutdown()
    if seen < nodes:
        print(
            f"Ray at {address} has {seen} of {nodes} nodes after {seconds:g} s: see what `ray start` said on the others",
            file=sys.stderr,
        )
        return 1
    return _script()


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


@app.command
def process(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> int:
    """Runs the script here as one of the processes of `jax.distributed`; the other commands call this.

    Args:
        coordinator: Host and port; with the next two, left out where Slurm or the TPU knows them.
        processes: How many there are.
        process: Which this is, from 0.
    """
    import jax

    jax.distributed.initialize(coordinator, processes, process)
    return _script()


def _script() -> int:
    sys.argv = list(SCRIPT)
    sys.path.insert(0, str(Path(SCRIPT[0]).resolve().parent))
    runpy.run_path(SCRIPT[0], run_name="__main__")
    return 0


def main(arguments: Sequence[str]) -> int:
    """What is before `--` is for this, what is after it is the script and its arguments."""
    global SCRIPT
    here = list(arguments)
    at = here.index("--") if "--" in here else len(here)
    SCRIPT = here[at + 1 :]
    if not SCRIPT and not {"-h", "--help"} & set(here):
        print(
            "no script to start: python scripts/launch.py COMMAND ... -- SCRIPT.py ARGUMENTS", file=sys.stderr
        )
        return 2
    return app.cli(args=here[:at])


SCRIPT: list[str] = []

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
