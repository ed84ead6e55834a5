import pytest

from fedjax_core.cluster import crew


@pytest.fixture(scope="session")
def ray_here():
    """Ray on this machine, started once for all tests that need it."""
    crew.connect(None, 8)
    yield
    crew.disconnect()
