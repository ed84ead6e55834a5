"""What the bytes between sites are: values as text, tensors, the signed envelope around them, whose keys
count, and what carries them.

{name: array} ─tensors.pack─► body ─envelope.encode─► bytes ═transport═► bytes ─envelope.decode─► header,
{name: array}
                                    signed by a key of identity.py            once only: replay.py
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
