"""What happens to the processes of sites under Ray."""

import os
import signal

import ray

from fedjax_core.sites.transport.ray_start import NAMESPACE


def kill(site):
    """SIGKILL to the process of a site."""
    actor = ray.get_actor(f"site-{site}", namespace=NAMESPACE)
    os.kill(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())), signal.SIGKILL)
