"""`fedjax-core report`: what a run did, as one page."""

from pathlib import Path

from tyro.conf import Positional

from fedjax_core.files import write_whole
from fedjax_core.report import gather, page


def report(run_dir: Positional[Path], out: Path | None = None) -> None:
    """Writes one self-contained HTML page about a run: sites, convergence, results, what left, privacy,
    faults, digests, TRIPOD+AI.

    Args:
        run_dir: The folder that `fit` was given as run_dir, or that of a consortium.
        out: Where the page goes; by default report.html in that folder.
    """
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is no folder of a run")
    path = run_dir / "report.html" if out is None else out
    text = page(gather(run_dir))
    write_whole(path, text)
    print(f"{path}: {len(text.encode()):,} bytes")
