"""Several hosts, each with some of the devices, run one simulation through `jax.distributed`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.lanes.hosts_script import train

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("hosts_script.py")


@pytest.mark.slow  # two starts of Python with a compilation in each: 20 s
def test_two_hosts_of_two_devices_are_one_device(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "FEDJAX_CORE_CACHE": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    command = [sys.executable, SCRIPT]
    hosts = [
        subprocess.Popen(
            [*command, str(i), "2", str(port), tmp_path / "end.npz"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        errors = [host.communicate(timeout=300)[1] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(error[-2000:] for error in errors)
    expected_model, expected_rest = train()
    with np.load(tmp_path / "end.npz") as found:
        assert np.linalg.norm(found["model"] - expected_model) <= 1e-6 * np.linalg.norm(expected_model)
        assert np.linalg.norm(found["rest"] - expected_rest) <= 2e-5 * np.linalg.norm(expected_rest)
