"""One Ray node on loopback, as a process of its own: what `ray start` is for a machine, where several nodes share one.

    python -m fedjax_core.sites.ray_node '{"head": true, "temp_dir": "/tmp/x"}'                     prints the head's address
    python -m fedjax_core.sites.ray_node '{"address": "127.0.0.1:6379", "resources": {"charite": 1}, "temp_dir": "/tmp/y"}'

`ray start` would do, but that, given 127.0.0.1 on Linux, takes the machine's address instead and listens on all its networks. Each node
needs a `temp_dir` of its own and of few letters, for sockets are in it. Security is Ray's own, from the environment: ray_security.py.
The process ends, and its node with it, when its standard input does: so a node ends with whoever started it, even if that was
killed; and it ends when one of the node's own processes dies.
"""

import json
import os
import signal
import sys
import threading
from typing import Any

from fedjax_core.sites.ray_security import on_loopback

_OBJECT_STORE_BYTES = 256 << 20  # of memory that is taken as it is used


def start(about: dict[str, Any]) -> Any:
    """Starts the node that `about` describes: `head`, or the `address` of one; `resources`, `temp_dir`, `name`."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    parameters = RayParams(
        gcs_address=about.get("address"),
        node_ip_address="127.0.0.1",
        node_name=about.get("name"),
        num_cpus=1,
        num_gpus=0,
        resources=about.get("resources", {}),
        object_store_memory=_OBJECT_STORE_BYTES,
        temp_dir=about.get("temp_dir"),
        include_dashboard=False,
        no_monitor=True,
        dashboard_agent_listen_port=None,
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
    )
    parameters.include_log_monitor = False  # type: ignore[assignment]  # which copies what workers print to other machines
    with on_loopback():
        return Node(parameters, head=bool(about.get("head")), shutdown_at_exit=True, spawn_reaper=True)


def _wait_for_the_end(let_go: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    let_go.set()


def main(argument: str) -> int:
    """Runs a node until standard input or the node itself ends."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    node = start(json.loads(argument))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(node.gcs_address, flush=True)
    let_go = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=[let_go], daemon=True).start()
    while not let_go.wait(0.3):
        if dead := node.dead_processes():
            print(f"{', '.join(kind for kind, _ in dead)} died", file=sys.stderr, flush=True)
            break
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=False)
    if os.getpgrp() == os.getpid():  # the node's agents, which would live on for a while, are of this group
        os.killpg(0, signal.SIGKILL)
    return 0 if let_go.is_set() else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
