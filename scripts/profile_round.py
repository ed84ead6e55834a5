"""Where does a round's time go? Writes a trace of a few rounds of a workload, and lists the operations that
took longest.

    python scripts/profile_round.py                                       synth, into runs/profile/synth
    python scripts/profile_round.py --workload emnist --rounds 1 --lanes 4

The trace opens in TensorBoard with its profile plugin, or at ui.perfetto.dev. An operation's name is that of
the compiled program, and its time the sum over all threads; loops, calls and conditionals are left out, since
what they hold is listed itself. A trace ends at a million events: give a large model one round.
"""

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import bench_engine as engine
import bench_timing as timing
import bench_workloads as bench
import jax
import tyro
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
HOLD_OTHERS = ("while", "call", "cond")


@dataclass(frozen=True)
class Settings:
    """Which rounds to look at."""

    workload: str = "synth"
    """One of synth, mlp, emnist, char-lstm, transformer."""
    rounds: int = 3
    lanes: int = 0
    """0: chosen by the engine."""
    out: Path = ROOT / "runs" / "profile"
    """The trace is written to a folder in it, named as the workload."""


def longest(trace: Path, count: int = 10) -> list[tuple[str, float, int]]:
    """(operation, seconds, how often) of the operations of compiled programs that took longest together."""
    seconds: Counter[str] = Counter()
    often: Counter[str] = Counter()
    for event in json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]:
        name = event.get("args", {}).get("hlo_op")
        if name and not name.startswith(HOLD_OTHERS):
            seconds[name] += event.get("dur", 0) / 1e6
            often[name] += 1
    return [(name, taken, often[name]) for name, taken in seconds.most_common(count)]


def main(settings: Settings) -> None:
    """Traces the rounds, after one that compiles."""
    workload, out = bench.WORKLOADS[settings.workload], settings.out / settings.workload
    print(timing.header())
    made, state = engine.simulator(settings.workload, workload, workload.data(), settings.lanes)
    dispatch = engine.rounds(made, state, workload.cohort)
    jax.block_until_ready(dispatch()[0])
    with jax.profiler.trace(out):
        for _ in range(settings.rounds):
            result, _ = dispatch()
        jax.block_until_ready(result)
    trace = max(out.glob("plugins/profile/*/*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    table = Table(
        "operation",
        "seconds",
        "times",
        title=f"{settings.rounds} rounds of {settings.workload} in {made.lanes} lanes",
    )
    for name, seconds, times in longest(trace):
        table.add_row(name, f"{seconds:.4f}", f"{times:,}")
    timing.show(table)
    print(f"open {trace} at ui.perfetto.dev, or: tensorboard --logdir {out} (pip install tensorboard xprof)")


if __name__ == "__main__":
    main(tyro.cli(Settings))
