import subprocess
import sys

import pytest

import fedjax_core as fc
import fedjax_core.cluster
from tests.run import small


def test_ray_is_not_imported_before_it_is_needed():
    code = "import sys, fedjax_core; print(fedjax_core.ClusterSimulator, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"


def test_where_ray_is_not_installed_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "fedjax_core.cluster.pool", raising=False)
    monkeypatch.delattr(fedjax_core.cluster, "pool", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'fedjax-core\[cluster\]'"):
        fc.ClusterSimulator(small.simulator().round, small.clients(), batch_size=4)
