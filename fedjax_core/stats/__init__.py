"""Exact statistics over clients or sites: each equals what the pooled rows give, from sums that every site computes of its own.

>>> from fedjax_core.data.clients import Clients
>>> clients = Clients.from_table({"site": list("aabb"), "y": [1.0, 2.0, 3.0, 5.0], "dose": [0, 1, 0, 1]}, by="site")
>>> glm("y ~ dose", clients).coefficients
{'Intercept': 2.0, 'dose': 1.5}
"""

from fedjax_core.stats.glm import Glm, glm
from fedjax_core.stats.newton import NoEstimate

__all__ = ["Glm", "NoEstimate", "glm"]
