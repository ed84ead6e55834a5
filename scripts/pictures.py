"""Pictures of a run's report and of `fedjax-core watch`, as a browser and a terminal show them: docs/report.png and docs/watch.png.

python -m scripts.pictures runs/alzheimer_trial          after `bash scripts/demo.sh`; needs Chromium (apt-get install chromium)
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console

from fedjax_core.report import gather, page
from fedjax_core.report.live import Pace, view

DOCS = Path(__file__).parent.parent / "docs"
NAMES = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 960, 1120  # of a column of the report's picture, in pixels


def browser() -> str | None:
    """The path of a Chromium on this machine; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def headless(program: str) -> list[str]:
    """The command of a browser without a window, which reaches no other machine."""
    return [
        program,
        "--headless",
        "--no-sandbox",  # as root, in containers; the page is ours
        "--disable-gpu",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ]


def screenshot(program: str, address: str, picture: Path, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Has the browser draw the page at an address, and writes what it drew as PNG."""
    command = [*headless(program), f"--screenshot={picture}", f"--window-size={width},{height}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main(run_dir: Path) -> None:
    """Draws both pictures of a run's folder."""
    program = browser()
    if program is None:
        raise SystemExit(f"no {', '.join(NAMES)} is on this machine: apt-get install chromium")
    facts = gather(run_dir)
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "page.png"
        (Path(folder) / "report.html").write_text(page(facts))
        screenshot(program, (Path(folder) / "report.html").as_uri(), drawn, WIDTH, 2 * HEIGHT)
        whole = Image.open(drawn).convert("RGB")
        halves = Image.new("RGB", (2 * WIDTH, HEIGHT), "white")
        for i in range(2):
            halves.paste(whole.crop((0, i * HEIGHT, WIDTH, (i + 1) * HEIGHT)), (i * WIDTH, 0))
        halves.resize((WIDTH, HEIGHT // 2), Image.Resampling.LANCZOS).quantize(64).save(
            DOCS / "report.png", optimize=True
        )

        console = Console(width=100, record=True, file=io.StringIO())
        pace = Pace(facts.plan.rounds or facts.rounds)
        pace.look(facts.rounds, 0.0)
        console.print(view(facts, pace))
        console.save_svg(str(Path(folder) / "watch.svg"), title=f"fedjax-core watch {run_dir}")
        screenshot(program, (Path(folder) / "watch.svg").as_uri(), drawn, 1280, 800)
        shown = Image.open(drawn).convert("RGB")
        shown.resize((WIDTH, 600), Image.Resampling.LANCZOS).quantize(64).save(
            DOCS / "watch.png", optimize=True
        )
    print(f"written: {DOCS / 'report.png'}, {DOCS / 'watch.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
