import pytest

from fedjax_core.cluster import pool


@pytest.fixture(scope="module")
def ray_here():
    """Ray on this machine, started once for all tests of a file."""
    pool.connect(None, 8)
    yield
    pool.disconnect()
