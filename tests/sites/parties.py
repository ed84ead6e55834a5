"""Who takes part in the tests of sites, and what they say."""

import numpy as np

from fedjax_core.sites.wire.envelope import Envelope, Header, encode
from fedjax_core.sites.wire.identity import Roster, SiteKey

CHARITE, MAYO, STRANGER, OLD = (SiteKey.make(name) for name in ("charite", "mayo", "stranger", "mayo"))
ROSTER = Roster({"charite": CHARITE.public, "mayo": MAYO.public}, {OLD.public: "laptop lost"})
TENSORS = {"['w']": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "['b']": np.array([4, 5], np.int32)}


def header(**changes):
    said = {
        "kind": "update",
        "run": "heart-1",
        "round": 3,
        "exchange": 0,
        "sender": "charite",
        "recipient": "coordinator",
        "sequence": 17,
        "created_unix_ms": 1_700_000_000_000,
        "config": "ab12",
        "fields": {"weight": 303.0, "examples": 303, "data": "f00d"},
    }
    return Header(**(said | changes))


def envelope(tensors=None, **changes):
    return Envelope(header(**changes), TENSORS if tensors is None else tensors)


def message(tensors=None, key=CHARITE, **changes):
    return encode(header(**changes), TENSORS if tensors is None else tensors, key)
