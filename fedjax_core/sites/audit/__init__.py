"""Tamper-evident audit logs: a changed, removed, moved or cut-off line shows."""

from fedjax_core.sites.audit.entries import NOTHING, AuditError, Entry, Head, files, head_of, heads, show
from fedjax_core.sites.audit.log import Log
from fedjax_core.sites.audit.proof import Anchor, anchor_path, held_by, verify

__all__ = [
    "NOTHING", "Anchor", "AuditError", "Entry", "Head", "Log", "anchor_path", "files", "head_of", "heads", "held_by", "show", "verify",
]  # fmt: skip
