"""The report and the page of `watch` in a real browser: what it draws, and that it loads the live page again by itself."""

import functools
import http.server
import json
import subprocess
import threading
import time

import numpy as np
import pytest

from fedjax_core.cli import main
from fedjax_core.report import note
from fedjax_core.run.plan import Plan, write_plan
from scripts.pictures import browser, headless, screenshot

pytestmark = pytest.mark.slow

BLUE, YELLOW = (0x00, 0x72, 0xB2), (0xFF, 0xF3, 0xBF)  # of curves, and of cells "for the author"


@pytest.fixture(scope="module")
def program():
    path = browser()
    if path is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    return path


@pytest.fixture
def folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    rounds(run, 12)
    flow = {
        "rows in": 50,
        "left out": {"'age' is missing": 4},
        "people": 44,
        "trained on": 36,
        "held out": 10,
    }
    note(
        run,
        question="Who dies?",
        flow={"oslo": flow, "kyoto": flow},
        performance={"all": {"auroc": [0.8, 0.7, 0.9]}, "oslo": {"auroc": 0.75}},
        calibration={"oslo": [[0.1, 0.2, 20], [0.6, 0.5, 16]]},
    )
    return run


def rounds(run, count):
    lines = [{"round": i, "kind": "train", "loss": 1 / i} for i in range(1, count + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def pixels(picture, colour):
    """How many pixels of a picture have this colour."""
    image = pytest.importorskip("PIL.Image", reason="Pillow, which reads the picture, is not installed")
    drawn = np.asarray(image.open(picture).convert("RGB"))
    return int((drawn == np.array(colour)).all(axis=-1).sum())


def test_a_browser_draws_curves_intervals_and_marks_of_the_report(folder, program, tmp_path):
    assert main(["report", str(folder)]) == 0
    full, bare = tmp_path / "full.png", tmp_path / "bare.png"
    screenshot(program, (folder / "report.html").as_uri(), full, height=4000)
    (folder / "report.json").unlink()
    (folder / "metrics.jsonl").write_text('{"round": 1, "kind": "train"}\n')
    assert main(["report", str(folder)]) == 0
    screenshot(program, (folder / "report.html").as_uri(), bare, height=4000)
    assert pixels(full, BLUE) > 1000 and pixels(bare, BLUE) == 0
    assert pixels(full, YELLOW) > 10_000 and pixels(bare, YELLOW) > pixels(full, YELLOW)


def test_a_browser_loads_the_live_page_again_until_the_run_is_over(folder, program, tmp_path):
    write_plan(folder, Plan(40))
    served = tmp_path / "served"
    served.mkdir()
    loaded = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/live.html":
                loaded.append((served / "live.html").read_text())
            super().do_GET()

        def log_message(self, *_):
            pass

    arguments = ["watch", str(folder), "--every", "1", "--page-file", str(served / "live.html")]
    watching = threading.Thread(target=main, args=(arguments,))
    watching.start()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=served))
    threading.Thread(target=server.serve_forever).start()
    until(lambda: (served / "live.html").exists())
    address = f"http://127.0.0.1:{server.server_port}/live.html"
    shown = subprocess.Popen(
        [*headless(program), "--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}", address],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: len(loaded) >= 2)
        rounds(folder, 40)
        write_plan(folder, Plan(40, "finished"))
        watching.join(30)
        until(lambda: loaded and "refresh" not in loaded[-1])
        count = len(loaded)
        time.sleep(3)
        assert len(loaded) == count  # it is over, and not loaded again
    finally:
        shown.terminate()
        shown.wait(30)
        server.shutdown()
        server.server_close()
        write_plan(folder, Plan(40, "finished"))
        watching.join(30)
    assert '<meta http-equiv="refresh" content="1">' in loaded[0] and "finished" in loaded[-1]
    picture = tmp_path / "live.png"
    screenshot(program, (served / "live.html").as_uri(), picture, height=3000)
    assert pixels(picture, BLUE) > 1000


def until(true, seconds=60):
    """Waits until it is true, and fails where it is not in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)
