"""Federated learning over real sites: the coordinator, the sites, their messages, policies and audit logs.

    policy.allows, may_leave ─► pack ─► encode ═wire═► decode ─► ReplayGuard.accept ─► validation.validate
             (site)         (site)   (signed)   (roster, digest)     (once)             (coordinator)

Neither a site nor the coordinator trusts what it receives. A message is bytes until its signature fits the
roster (wire/identity.py), and numbers are used only after validation. Each end records what happened in its
audit log. The README says what each folder holds, and which folder may import which.
"""
