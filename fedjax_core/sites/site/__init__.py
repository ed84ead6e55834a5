"""One end of a federation: a site, the only code that touches its data, key, policy, ledger and what it keeps
between rounds."""

from fedjax_core.sites.site.endpoint import Site

__all__ = ["Site"]
