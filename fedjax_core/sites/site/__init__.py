"""A site: the end of a federation that holds data, key, policy, audit log and client state."""

from fedjax_core.sites.site.endpoint import Site

__all__ = ["Site"]
