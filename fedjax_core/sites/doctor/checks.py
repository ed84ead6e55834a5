"""The doctor's checks, by the names in its findings, in reading order."""

from collections.abc import Callable

from fedjax_core.sites.doctor import machine, study
from fedjax_core.sites.doctor.base import Settings, Skipped, Unfit
from fedjax_core.sites.site_file import SiteFile

__all__ = ["CHECKS", "Settings", "Skipped", "Unfit"]

CHECKS: dict[str, Callable[[SiteFile, Settings], str]] = {
    "versions": machine.versions, "key": machine.own_key, "coordinator": machine.coordinator, "clock": machine.clock,
    "data": study.data, "task": study.task, "labels": study.labels, "policy": study.policy, "study": study.study,
    "modes": machine.modes, "disk": machine.disk, "memory": machine.memory, "network": machine.network,
    "started": machine.started, "ray": machine.ray,
}  # fmt: skip
