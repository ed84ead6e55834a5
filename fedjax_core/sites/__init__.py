"""Real sites: what they say to each other and who says it, what is let in, what may leave, and the record of
it all.

    policy.allows, may_leave  ─►  tensors.pack  ─►  encode  ═wire═►  decode  ─►  replay.ReplayGuard.accept  ─►  validation.validate
            (site)                (site)         (site, signed)  (roster, digest)       (once)              (any good?)

A site does not trust what comes in, and neither does the coordinator: a message is bytes until its signature
fits the roster (wire/identity.py), and numbers are only used once they were validated. What happened on
either side is in its audit log. What lies in which of these folders, and which may import which, is in the
README.
"""
