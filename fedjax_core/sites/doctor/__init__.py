"""The doctor: checks whether a site is ready to join, before it does."""

from fedjax_core.sites.doctor.examination import Finding, Settings, beside, examine

__all__ = ["Finding", "Settings", "beside", "examine"]
