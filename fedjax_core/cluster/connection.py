"""This process's connection to Ray: joined, or started on this machine and shut down after its last user.

What is started here has no dashboard and sends no usage statistics; Ray from 2.60 on guards it by a token.
"""

import logging
import os
import warnings
from typing import Any

import ray

from fedjax_core.machine import cores, short_folder


class Connections:
    """Ray as connected or started by this process, for as long as a simulator uses it."""

    def __init__(self) -> None:
        self.users, self.connected, self.started = 0, False, False
        self._set: list[str] = []

    def open(self, address: str | None, cpus: int) -> None:
        """Connects to the cluster at `address`, else at RAY_ADDRESS; without both starts one here. If
        connected, uses that."""
        address = address or os.environ.get("RAY_ADDRESS")
        if not ray.is_initialized():
            self._environment("RAY_USAGE_STATS_ENABLED", "0")
            self._environment("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            chosen: dict[str, Any] = {"address": address}
            if address is None:
                chosen = {
                    "address": "local",
                    "num_cpus": max(cpus, cores()),
                    "include_dashboard": False,
                    "_temp_dir": str(short_folder() / "ray"),
                }
            with warnings.catch_warnings():
                # JAX warns of any fork; these only start Ray's own programs.
                warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
                ray.init(log_to_driver=False, logging_level=logging.ERROR, namespace="fedjax_core", **chosen)
            self.users, self.connected, self.started = 0, True, address is None
        self.users += 1

    def close(self) -> None:
        """Disconnects, or shuts Ray down, once the last user is gone."""
        self.users -= 1
        if self.users == 0 and self.connected:
            ray.shutdown()
            self.connected = self.started = False
            for name in self._set:
                os.environ.pop(name, None)
            self._set = []

    def _environment(self, name: str, value: str) -> None:
        """Sets an environment variable that is not set yet."""
        if name not in os.environ:
            self._set.append(name)
            os.environ[name] = value


connections = Connections()
