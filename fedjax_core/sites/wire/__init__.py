"""The wire format: canonical text, tensors, signed envelopes, identities, replay protection, transports.

{name: array} ─tensors.pack─► body ─envelope.encode─► bytes ═transport═► bytes ─envelope.decode─► Envelope
                                    signed by a key of identity.py            accepted once: replay.py
"""

from fedjax_core.sites.wire.envelope import (
    COORDINATOR,
    SITES,
    Draft,
    Envelope,
    Header,
    decode,
    encode,
    header_of,
)

__all__ = ["COORDINATOR", "SITES", "Draft", "Envelope", "Header", "decode", "encode", "header_of"]
