import pytest

from fedjax_core.cluster import crew


@pytest.fixture(scope="module")
def ray_here():
    """Ray on this machine, started once for all tests of a file."""
    crew.connect(None, 8)
    yield
    crew.disconnect()
