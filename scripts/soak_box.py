"""Does a consortium in a box end with the same bits whatever is killed, and when? Any of its processes, at
times drawn at random.

    python scripts/soak_box.py                          10 minutes of runs
    python scripts/soak_box.py --minutes 60 --seed 7

The study is SCAFFOLD with quantised updates and error feedback: sites keep something that must not be lost,
and not count twice. One run is left alone. In all others one process after another is drawn from all that
there are, the command itself among them and Ray's own, and gets SIGKILL. A command that gives up is given
again, as it says. In the end the last checkpoint has to be that of the run that was left alone, bit for bit,
and every audit log as it was written. Ends with code 1, and keeps the folder, where one is not."""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_timing as timing
import psutil
import tyro
from rich.table import Table

import fedjax_core as fc
from fedjax_core.run.checkpoint import read
from fedjax_core.sites.study import Study

HERE = Path(__file__).parent
SITES = 3
# of the command, before it is taken for one that never ends: `apart` is too short, or something is wrong
_TRIES = 20


@dataclass(frozen=True)
class Settings:
    """How long, and what is run."""

    minutes: float = 10.0
    """The last run begins before so many are over."""
    seed: int = 0
    """Of what is killed, and when; the next run has the next one."""
    rounds: int = 60
    apart: tuple[float, float] = (0.05, 1.0)
    """From one kill to the next, at least and at most, in times of what the run that is left alone takes."""


def study() -> Study:
    """What is run, at the hospitals of the box."""
    algorithm = fc.algorithms.scaffold(fc.models.logistic(features=30, classes=1), 0.05, SITES)
    uplink = fc.uplink.chain(fc.uplink.clip(1.0), fc.uplink.feedback(fc.uplink.quantize(bits=8)))
    return Study(fc.compose(algorithm, uplink=uplink), batch_size=16, epochs=2)


def command(folder: Path, settings: Settings) -> list[str]:
    """All sites have to report, so that the same ones always do."""
    counts = [
        f"--{name}={value}"
        for name, value in (("sites", SITES), ("quorum", SITES), ("rounds", settings.rounds))
    ]
    return [
        sys.executable, "-m", "fedjax_core", "consortium", "run", str(folder), "--study=soak_box:study", "--checkpoint-every=2", *counts,
    ]  # fmt: skip


def last(folder: Path, rounds: int) -> Any:
    """Names, dtypes, shapes and digests of the last state."""
    return read(folder / "coordinator" / "run" / "checkpoints" / f"{rounds:08d}").leaves


def kind(process: psutil.Process) -> str:
    """What a process is for."""
    words = process.cmdline()
    known = {
        "fedjax_core.consortium.lead": "coordinator",
        "fedjax_core.sites.transport.ray_node": "node",
        "consortium": "command",
    }
    return next(
        (known[word] for word in words if word in known),
        Path(words[0].split()[0]).name if words else process.name(),
    )


def attempt(folder: Path, settings: Settings, alone: float, draw: random.Random, killed: list[str]) -> bool:
    """Whether the command came to its end, with others killed on the way; adds what was killed."""
    with (
        open(folder.parent / f"{folder.name}.log", "a") as log,
        subprocess.Popen(command(folder, settings), cwd=HERE, stdout=log, stderr=log) as run,
    ):
        try:
            while True:
                try:
                    return run.wait(alone * draw.uniform(*settings.apart)) == 0
                except subprocess.TimeoutExpired:
                    whole = psutil.Process(run.pid)
                    one = draw.choice([whole, *whole.children(recursive=True)])
                    try:
                        what = kind(one)
                        one.kill()
                        killed.append(what)
                    except psutil.NoSuchProcess:  # it ended by itself meanwhile
                        continue
        finally:
            run.kill()


def main(settings: Settings) -> int:
    """Runs until the time is over: 0 where all ended with the same bits."""
    home = Path(tempfile.mkdtemp(prefix="soak-"))
    print(timing.header(), flush=True)
    begun = time.monotonic()
    subprocess.run(command(home / "alone", settings), cwd=HERE, stdout=subprocess.DEVNULL, check=True)
    alone = time.monotonic() - begun
    expected, until, seed, wrong = (
        last(home / "alone", settings.rounds),
        time.monotonic() + settings.minutes * 60,
        settings.seed,
        0,
    )
    table = Table("seed", "seconds", "commands", "killed", "the same bits")
    while time.monotonic() < until:
        folder, draw, began = home / str(seed), random.Random(seed), time.monotonic()
        killed: list[str] = []
        times = next(
            (n for n in range(1, _TRIES + 1) if attempt(folder, settings, alone, draw, killed)), None
        )
        same = times is not None and last(folder, settings.rounds) == expected
        found = (
            "the same bits"
            if same
            else "NOT the same bits"
            if times
            else "NO END: kills may come too soon one after another"
        )
        table.add_row(
            str(seed),
            f"{time.monotonic() - began:.0f}",
            str(times or _TRIES),
            ", ".join(killed),
            "yes" if same else f"NO: {folder}",
        )
        timing.say(f"seed {seed}: {len(killed)} killed, {times or _TRIES} commands, {found}")
        wrong += not same
        seed += 1
    timing.show(table)
    if not wrong:
        shutil.rmtree(home)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Settings)))
