"""Is this checkout slower than another one? The same rounds of both, in turn, each in a process of its own.

    git worktree add ../before COMMIT
    python scripts/bench_before.py ../before                                       everything: 20 minutes on two idle cores
    python scripts/bench_before.py ../before --workloads synth mlp --sites --turns 30
    python scripts/bench_before.py ../before --workloads --sites 4 10 32

Both run in the environment that runs this script, so they differ by their own code alone. A workload has
three processes: the other checkout with a lane on every core (`fc.cores()`), this one likewise, and this one
as `fc.Simulator` comes without a `mesh`. Of sites, each process has a federation that learns nothing and bare
Ray beside it (`bench_echo.py`). Ratios are formed turn by turn; a table gives their median and quartiles.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import bench_timing as timing
import numpy as np
import tyro
from rich.table import Table

HERE = Path(__file__).resolve().parents[1]
WARM = 30  # rounds of sites before the first that counts

Ask = Callable[[str], float]
"""What a process took for a turn of this kind: seconds a round, or an example."""


@dataclass(frozen=True)
class Settings:
    """What to compare, and how often."""

    before: tyro.conf.Positional[Path]
    """The other checkout."""
    workloads: tuple[str, ...] = ("synth", "mlp", "emnist", "char-lstm", "transformer")
    """Of `bench_engine.py`."""
    sites: tuple[int, ...] = (4, 10, 32)
    """How many sites, of empty rounds."""
    turns: int = 21
    """How often each has its turn."""


@contextmanager
def process(checkout: Path, *about: str) -> Iterator[Ask]:
    """A process with this checkout's code, once it is warm."""
    with tempfile.TemporaryDirectory() as folder:  # Ray's workers import from where their driver began
        where = os.pathsep.join([str(checkout), str(checkout / "scripts")])
        command = [sys.executable, str(Path(__file__).resolve()), "--turns-of", str(checkout), *about]
        environment = {**os.environ, "PYTHONPATH": where}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as child:  # type: ignore[call-overload]
            assert child.stdin is not None and child.stdout is not None
            written, lines = child.stdin, child.stdout

            def ask(kind: str) -> float:
                written.write(f"{kind}\n")
                return float(heard())

            def heard() -> str:
                for line in lines:
                    if line.startswith("= "):
                        return line[2:]
                raise RuntimeError(
                    f"{checkout} stopped with status {child.wait()} at {' '.join(about)}; its error is above"
                )

            heard()
            yield ask
            written.close()


def serve(checkout: str, kind: Literal["cores", "default", "sites"], which: str) -> None:
    """The other end of `process`: turns of a workload, or of a federation of so many sites, each when a line
    asks for it."""
    sys.path[:0] = [checkout, str(Path(checkout) / "scripts")]
    import fedjax_core as fc

    if not str(fc.__file__).startswith(checkout):
        raise RuntimeError(f"fedjax_core comes from {fc.__file__}, not from {checkout}")
    with ExitStack() as stack:
        turns = (
            sites(int(which), stack)
            if kind == "sites"
            else {"round": workload(which, spread=kind == "cores")}
        )
        for turn in turns.values():
            turn()
        print("= warm", flush=True)
        for line in sys.stdin:
            print("=", turns[line.strip()](), flush=True)


def workload(name: str, *, spread: bool) -> timing.Turn:
    """Rounds of this workload, with lanes on every core if these are to be asked for."""
    import bench_engine as engine
    import bench_workloads as bench
    import jax
    import optax

    import fedjax_core as fc

    mesh = {"mesh": fc.cores()} if spread else {}
    what = bench.WORKLOADS[name]
    data = what.data()
    task, renamed = engine.task(name, what)
    composed = fc.compose(fc.algorithms.fedavg(task, local=optax.sgd(what.lr)))
    clients = fc.Clients.from_arrays({"x": data.x, "y": data.y}, offsets=data.offsets)
    simulator = fc.Simulator(composed, clients, batch_size=what.batch_size, epochs=1, **mesh)
    state = simulator.init(jax.random.key(0), params=renamed(what.init(jax.random.key(0))))
    return timing.turn_of(engine.rounds(simulator, state, what.cohort), 0.6)


def sites(count: int, stack: ExitStack) -> dict[str, timing.Turn]:
    """Empty rounds of so many sites, and bare Ray doing the same."""
    import bench_echo as echo

    folder = stack.enter_context(tempfile.TemporaryDirectory())
    made = stack.enter_context(echo.federation(count, 1, folder))
    rounds, bare = echo.rounds_of(made), echo.bare(count, 1)
    for _ in range(WARM):
        rounds(), bare()
    return {"round": timing.turn_of(rounds, 0.3), "bare": timing.turn_of(bare, 0.2)}


def in_turn(asks: dict[str, Callable[[], float]], turns: int) -> dict[str, np.ndarray]:
    """What each took, [turns]; who begins changes from turn to turn."""
    names = list(asks)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for i in range(turns):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            taken[name].append(asks[name]())
    return {name: np.array(times) for name, times in taken.items()}


def said(ratio: np.ndarray) -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
    return f"{middle:.3f} ({low:.2f} to {high:.2f})"


def compare_workloads(settings: Settings) -> Table:
    """How many times as fast this checkout is."""
    table = Table(
        "workload",
        "speed over before",
        "default over before",
        "default over fc.cores()",
        title="examples a second, ratios",
    )
    for name in settings.workloads:
        timing.say(name)
        with ExitStack() as stack:
            which = {
                "before": (settings.before, "cores"),
                "now": (HERE, "cores"),
                "default": (HERE, "default"),
            }
            asks = {
                who: stack.enter_context(process(where, kind, name)) for who, (where, kind) in which.items()
            }
            took = in_turn({who: partial(ask, "round") for who, ask in asks.items()}, settings.turns)
        pairs = (("before", "now"), ("before", "default"), ("now", "default"))
        table.add_row(name, *(said(took[slower] / took[faster]) for slower, faster in pairs))
    return table


def compare_sites(settings: Settings) -> Table:
    """How many times as long an empty round takes."""
    title = "an empty round of sites, time ratios"
    table = Table(
        "sites", "before, times bare Ray", "now, times bare Ray", "ms now", "now over before", title=title
    )
    for count in settings.sites:
        timing.say(f"{count} sites")
        with ExitStack() as stack:
            checkouts = {"before": settings.before, "now": HERE}
            asks = {
                who: stack.enter_context(process(where, "sites", str(count)))
                for who, where in checkouts.items()
            }
            turns = {
                f"{who} {kind}": partial(ask, kind) for who, ask in asks.items() for kind in ("bare", "round")
            }
            took = in_turn(turns, settings.turns)
        ratios = [took[f"{who} round"] / took[f"{who} bare"] for who in asks]
        over = took["now round"] / took["before round"]
        table.add_row(str(count), *map(said, ratios), f"{1e3 * np.median(took['now round']):.1f}", said(over))
    return table


def main(settings: Settings) -> None:
    """Compares, and prints the tables."""
    if not (settings.before / "fedjax_core").is_dir():
        raise SystemExit(
            f"{settings.before} has no fedjax_core: make the other checkout with git worktree add PATH COMMIT"
        )
    print(timing.header())
    if settings.workloads:
        timing.show(compare_workloads(settings))
    if settings.sites:
        timing.show(compare_sites(settings))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--turns-of"]:
        serve(*sys.argv[2:5])  # type: ignore[arg-type]
    else:
        found = tyro.cli(Settings)
        main(Settings(found.before.resolve(), found.workloads, found.sites, found.turns))
