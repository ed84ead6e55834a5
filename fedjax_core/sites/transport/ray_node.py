"""Runs one Ray node as a process of its own, with less exposed than by `ray start`.

    python -m fedjax_core.sites.transport.ray_node '{"head": true, "temp_dir": "/tmp/x"}'                     prints the head's address
    python -m fedjax_core.sites.transport.ray_node '{"address": "127.0.0.1:6379", "resources": {"charite": 1}, "temp_dir": "/tmp/y"}'
    fedjax-core node site.toml --address ray.example:6379                                           on a site's own machine

    `ray start` (Ray 2.60)                                               here
    makes its folder, with logs and sockets in it, for all (mode 0777)   in a folder that its owner alone can enter
    writes what workers write as the umask says                          for their owner alone (umask 077)
    copies what workers print to other machines (log monitor)            does not
    starts a dashboard, a server for Ray clients, an autoscaler          does not
    sends statistics of use to Ray's makers                              does not
    given 127.0.0.1 on Linux, listens on all networks                    listens there alone

Several nodes on one machine stay on loopback. Each node needs its own `temp_dir`, with a short path, as
sockets are in it. Security is Ray's own, from the environment: ray_security.py. As a module it ends, with its
node, when its standard input does: so a node ends with the process that started it, even a killed one. It
also ends when one of the node's own processes dies.
"""

import contextlib
import json
import os
import signal
import sys
import threading
from typing import Any

from fedjax_core.sites.transport.ray_security import on_loopback

_LOOPBACK = "127.0.0.1"
_OBJECT_STORE_BYTES = 256 << 20  # memory is allocated as it is used


def start(options: dict[str, Any]) -> Any:
    """Starts a node by its `options`: `head`, or the `address` of one; `resources`, `temp_dir`, `name`.

    `ip`: the address for other machines, and `port`: of a head; without them it is on loopback, at a free
    port."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    ip = options.get("ip", _LOOPBACK)
    parameters = RayParams(
        gcs_address=options.get("address"),
        gcs_server_port=options.get("port"),
        node_ip_address=ip,
        node_name=options.get("name"),
        num_cpus=1,
        num_gpus=0,
        resources=options.get("resources", {}),
        object_store_memory=_OBJECT_STORE_BYTES,
        temp_dir=options.get("temp_dir"),
        include_dashboard=False,
        no_monitor=True,
        dashboard_agent_listen_port=None,
        node_manager_port=0,
        min_worker_port=0,
        max_worker_port=0,
    )
    parameters.include_log_monitor = False  # type: ignore[assignment]  # which copies what workers print to other machines
    with on_loopback() if ip == _LOOPBACK else contextlib.nullcontext():
        return Node(parameters, head=bool(options.get("head")), shutdown_at_exit=True, spawn_reaper=True)


def _wait_for_the_end(let_go: threading.Event) -> None:
    while os.read(0, 1024):
        pass
    let_go.set()


def run(options: dict[str, Any], let_go: threading.Event) -> bool:
    """Runs a node by its `options` until `let_go` is set, also by SIGTERM and SIGINT, or it dies: whether it
    was let go.

    For a process that does nothing else.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.umask(0o077)
    node = start(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: let_go.set())
    print(node.gcs_address, flush=True)
    while not let_go.wait(0.3):
        if dead := node.dead_processes():
            print(f"{', '.join(kind for kind, _ in dead)} died", file=sys.stderr, flush=True)
            break
    node.kill_all_processes(check_alive=False, allow_graceful=False, wait=False)
    return let_go.is_set()


def main(argument: str) -> int:
    """Runs a node until standard input or the node itself ends."""
    let_go = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=[let_go], daemon=True).start()
    well = run(json.loads(argument), let_go)
    if os.getpgrp() == os.getpid():  # ends the node's agents, in this group, which would live on
        os.killpg(0, signal.SIGKILL)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
