"""Who has another token, certificates of another authority or none is refused by a box that runs, and the box
goes on."""

import os
import subprocess
import sys

import psutil
import pytest

from fedjax_core.consortium import box
from fedjax_core.sites.transport import ray_security
from fedjax_core.sites.transport.certificates import Files

pytestmark = pytest.mark.slow

JOIN = (
    "import sys; from fedjax_core.sites.transport.ray_start import start_ray; import ray; "
    "start_ray([], sys.argv[1], False); print(len(ray.nodes()))"
)


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    """What each client was told that came to a box of two sites while it ran, and what came of the box."""
    home, told = tmp_path_factory.mktemp("strangers"), {}
    other = ray_security.environment(
        ray_security.equip(home / "tls", {"stranger": ["127.0.0.1"]})["stranger"].certificate.parent
    )

    def visit(line):
        if "Ray nodes" not in line:
            return
        ours = ray_security.environment(home / "box" / "coordinator" / "ray")
        address = head()
        told["a site"] = join(address, ours)
        told["another token"] = join(address, ours | {"RAY_AUTH_TOKEN_PATH": other["RAY_AUTH_TOKEN_PATH"]})
        told["another authority"] = join(
            address, other | {"RAY_AUTH_TOKEN_PATH": ours["RAY_AUTH_TOKEN_PATH"]}
        )
        told["no TLS"] = join(
            address, {name: ours[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
        )
        # One that trusts our authority, which is no secret, and so finds nothing wrong with the Ray before it shows its
        # own certificate.
        told["a foreign certificate"] = ray_security.greeting(
            address, Files.named_by(other | {"RAY_TLS_CA_CERT": ours["RAY_TLS_CA_CERT"]})
        )
        told["our certificate"] = ray_security.greeting(address, Files.named_by(ours))

    told["the box"] = box.run(home / "box", sites=2, rounds=2, say=visit)
    return told


def head():
    """host:port of the coordinator's Ray."""
    (gcs,) = [one for one in psutil.Process().children(recursive=True) if one.name() == "gcs_server"]
    (port,) = {one.laddr.port for one in gcs.net_connections("tcp") if one.status == psutil.CONN_LISTEN}
    return f"127.0.0.1:{port}"


def join(address, variables):
    """The last line that a process with these variables says of its attempt to join."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | variables
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address], env=environment, capture_output=True, text=True, timeout=60
    )
    return (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1]


def test_who_has_all_of_it_is_let_in(met):
    assert met["a site"] == "3" and met["our certificate"] is None


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ("another token", ("ConnectionError", "does not let this process in. Is the token the cluster's")),
        (
            "another authority",
            ("InsecureRay", "shows a certificate that is not good for 127.0.0.1", "Nothing was sent to it"),
        ),
        ("a foreign certificate", ("does not take", "it trusts another authority")),
        ("no TLS", ("InsecureRay", "lacks TLS (RAY_USE_TLS=1")),
    ],
)
@pytest.mark.meets("164.312(d)", by="strangers to the cluster are refused, each by name")
def test_a_stranger_is_refused_with_a_message_of_its_own(met, who, said):
    assert all(words in met[who] for words in said), met[who]


def test_the_box_goes_on(met):
    assert met["the box"].rounds == 2 and met["the box"].restarts == {}
