import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_a_node_that_is_lost_changes_no_bit(tmp_path):
    """On a cluster of its own, which this process, with one already, cannot connect to."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    script = [sys.executable, "-W", "error", "-m", "tests.cluster.node_script", str(tmp_path)]
    done = subprocess.run(
        script, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "same"
