"""Secure aggregation: sites add masks that cancel in the sum, so that a coordinator reads the sum of their
reports and no report.

    advertise   a site -> all       two public keys of this round, signed by the site's identity
    share       a site -> each peer its two secrets in Shamir shares, each share in a box that only that peer opens
    mask        a site -> server    its report in whole numbers, plus one mask a peer, plus one of its own
    confirm     a site -> all       its signature over who is in the sum, so that no two sites are shown different sums
    reveal      a site -> server    for each peer one share: of its own mask where it is in the sum, of its key where it dropped out

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017, against a
server that may lie; with more than a hundred sites each has fifty peers (Bell et al., "Secure Single-Server
Aggregation with (Poly)Logarithmic Overhead", CCS 2020).

    ring.py      reports as whole numbers modulo 2^32; `fc.uplink.secure` works by the same
    shamir.py    a secret in shares              masks.py    keys of pairs, boxes, and the masks themselves
    graph.py     who has a mask with whom        messages.py what is sent
    client.py    the site's end                  server.py   the coordinator's end
    spent.py     what a site has opened, on its disk

Both ends are state machines without a transport: a message in, a message out. This code was not audited, and
arithmetic on shares takes time that depends on the secrets.
"""
