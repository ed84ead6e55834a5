"""`fedjax-core consortium ...`: a coordinator and its sites on this machine."""

import json
import os
import sys
from pathlib import Path

from rich.console import Console
from tyro.conf import Positional
from tyro.extras import SubcommandApp

from fedjax_core.consortium import box

app = SubcommandApp()


@app.command(name="run")
def run(
    folder: Positional[Path] = Path("runs/consortium"),
    sites: int | None = None,
    site_files: Path | None = None,
    study: str | None = None,
    arguments: str | None = None,
    rounds: int | None = None,
    quorum: int | None = None,
    train_seconds: float | None = None,
    checkpoint_every: int | None = None,
) -> None:
    """Starts a coordinator and sites as processes of this machine, each with its own key, data, Ray node and
    certificate; runs a study over them, and stops them. With an existing folder it goes on where it was.

    Args:
        folder: Where everything is kept, as it would be on real machines.
        sites: The number of made-up hospitals with breast-cancer records (3).
        site_files: Or sites of your own: a folder with a file NAME.toml each, which has at least name and
            data.
        study: Their study: module:function, which returns a fedjax_core.sites.study.Study.
        arguments: The arguments of that function, as JSON.
        rounds: The number of rounds in all (20).
        quorum: The number of sites that must report for a round to count; rounds go on without the others. By
            default all must: a dead site is waited for until it is back.
        train_seconds: The longest time that a site trains in an exchange before it sends what it has done; by
            default unlimited.
        checkpoint_every: The number of rounds between checkpoints (5).
    """
    try:
        given = None if arguments is None else dict(json.loads(arguments))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"--arguments should be a JSON object, such as '{{\"lr\": 0.05}}'; got {arguments!r} ({error})"
        ) from None
    if os.getcwd() not in sys.path:
        # where a study of one's own is, as it is for the processes that are started
        sys.path.insert(0, os.getcwd())
    try:
        result = box.run(
            folder, sites=sites, site_files=site_files, study=study, arguments=given, rounds=rounds, quorum=quorum,
            train_seconds=train_seconds, checkpoint_every=checkpoint_every, say=lambda line: print(line, flush=True),
        )  # fmt: skip
    except KeyboardInterrupt:
        raise RuntimeError(f"stopped; `fedjax-core consortium run {folder}` goes on from here") from None
    Console().print(box.table(result))
    print(
        f"Look around in {folder}: sites/*/site.toml and policy.toml say what a site does and lets out; this shows what left one:"
    )
    one = next(iter(result.sites))
    home = f"{folder}/sites/{one}"
    print(f"  fedjax-core audit show {home}/state/audit --keys {home}/{one}.pub --what left")
