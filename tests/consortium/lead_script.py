"""A coordinator's process in which things are killed: FAILPOINTS in the environment is a JSON list of [point,
round, what]."""

import json
import os
import signal
import sys
from pathlib import Path

import psutil

from fedjax_core.consortium import lead
from tests.consortium import failpoints


def processes(site, name):
    """The processes of a site that are called so: each has its certificate in its environment."""
    supervisor = psutil.Process(os.getppid())
    return [
        one
        for one in supervisor.children(recursive=True)
        if name in one.name() and f"/sites/{site}/" in certificate(one)
    ]


def certificate(process):
    try:
        return process.environ().get("RAY_TLS_SERVER_CERT", "")
    except psutil.Error:
        return ""


def kill(found):
    assert found
    for process in found:
        process.send_signal(signal.SIGKILL)


def everything():
    supervisor = psutil.Process(os.getppid())
    others = [one for one in supervisor.children(recursive=True) if one.pid != os.getpid()]
    kill([*others, supervisor, psutil.Process()])


STRIKES = {
    "coordinator": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "site": lambda: kill(processes("kyoto", "ray::SiteActor")),
    "node": lambda: kill(processes("mayo", "raylet")),
    "everything": everything,
}


if __name__ == "__main__":
    for i, (point, number, what) in enumerate(json.loads(os.environ["FAILPOINTS"])):
        failpoints.arm(point, number, STRIKES[what], Path(sys.argv[1]) / "struck" / f"{i}-{what}")
    sys.exit(lead.main(*sys.argv[1:]))
