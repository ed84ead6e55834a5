"""`fedjax-core watch`: a run as it goes on, in the terminal and as a page."""

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from tyro.conf import Positional

from fedjax_core.files import write_whole
from fedjax_core.report import gather, page
from fedjax_core.report.live import Pace, view
from fedjax_core.sites.audit import AuditError


def watch(
    run_dir: Positional[Path],
    rounds: int | None = None,
    every: float = 2.0,
    page_file: Path | None = None,
    once: bool = False,
) -> None:
    """Shows a run while it goes on: rounds, time left, metrics, sites, refusals, privacy spent. It only reads
    the folder.

    Args:
        run_dir: The folder that `fit` was given as run_dir, or that of a consortium.
        rounds: How many the run is to have, where its folder does not say that (plan.json, which `fit`
            writes). It gives the time left, and `watch` then ends with the run. Ctrl-C ends it at any time.
        every: Seconds between looks.
        page_file: Writes the report's page there at each look, too; a browser that has it open loads it again
            by itself.
        once: Looks once, prints that, and ends.
    """
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is no folder of a run")
    if every <= 0:
        raise ValueError(f"every={every} must be above 0, the seconds between two looks")
    console, pace = Console(), Pace(rounds)
    if once:
        facts = gather(run_dir)
        pace.planned(facts.plan.rounds)
        pace.look(facts.rounds, time.monotonic())
        console.print(view(facts, pace))
        _write(page_file, page(facts))
        return
    try:
        with Live("waiting for the first round", console=console, auto_refresh=False) as live:
            over = False
            while not over:
                try:
                    facts = gather(run_dir)
                # nothing is there yet, or a line is just being written
                except (
                    ValueError,
                    AuditError,
                ) as error:
                    live.update(f"waiting: {error}", refresh=True)
                else:
                    pace.planned(facts.plan.rounds)
                    pace.look(facts.rounds, time.monotonic())
                    over = pace.done or (rounds is None and facts.plan.over)
                    live.update(view(facts, pace), refresh=True)
                    _write(page_file, page(facts) if over else _again(page(facts), every))
                if not over:
                    time.sleep(every)
    except KeyboardInterrupt:
        pass


def _again(text: str, every: float) -> str:
    """The page with the request that a browser loads it again."""
    return text.replace("<head>", f'<head><meta http-equiv="refresh" content="{max(1, round(every))}">', 1)


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        write_whole(path, text)
