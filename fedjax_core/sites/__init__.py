"""Real sites: what they say to each other and who says it, what is let in, what may leave, and the record of it all.

    policy.allows, may_leave  ─►  tensors.pack  ─►  wire.encode  ═wire═►  wire.decode  ─►  guard.admit  ─►  gate.check
            (site)                (site)         (site, signed)         (roster, digest)     (once)       (any good?)

A site does not trust what comes in, and neither does the coordinator: a message is bytes until its signature fits the roster
(identity.py), and numbers are only used once the gate has looked at them. What happened on either side is in its audit log.
"""
