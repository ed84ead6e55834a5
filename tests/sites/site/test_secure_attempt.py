"""What a site does not put under masks, and in which attempt it takes part."""

import numpy as np
import pytest

from fedjax_core.secure_aggregation.messages import Survivors
from fedjax_core.secure_aggregation.ring import Masked, Weighted, ring
from fedjax_core.sites.protocol.request import BadRequest
from fedjax_core.sites.protocol.secure import ATTEMPT, read, written
from fedjax_core.sites.site.secure_attempt import NoAttempt, OutOfRing, Secure
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.wire.identity import SiteKey
from fedjax_core.sites.wire.trees import to_tensors
from tests.sites.parties import header


def secure():
    return Secure(SiteFile(name="charite"), SiteKey.make("charite"), ring(bound=1.0, bits=3, weights=8))


def report(fits=0.0):
    numbers = np.array([[-6, 0, 3]], np.int32).view(np.uint32)
    return Masked(Weighted({"w": numbers}, np.uint32(2)), np.float32(fits))


def test_a_report_that_does_not_fit_the_ring_stays():
    with pytest.raises(
        OutOfRing, match=r"a number beyond 1, or that is not finite, .*: add fc.uplink.clip\(1\)"
    ):
        secure().vector(report(np.nan))


def test_the_policy_judges_the_update_that_the_ring_has():
    """Steps of a third, and a weight of 2."""
    site = secure()
    vector = site.vector(report())
    assert vector.dtype == np.uint32 and vector[-1] == 2
    np.testing.assert_allclose(site.judged(vector)["update"], [-1.0, 0.0, 0.5], rtol=1e-6)


def test_a_site_takes_part_in_the_attempt_that_it_was_asked_for_last():
    site, asked = secure(), header(sequence=17)
    with pytest.raises(NoAttempt, match="it has not begun it, or was started anew since"):
        site.attempt(header(fields={ATTEMPT: 17}))
    attempt = site.begin(asked, site.vector(report()), minimum=0)
    site.go_on(attempt)
    assert site.attempt(header(fields={ATTEMPT: 17})) is attempt
    with pytest.raises(NoAttempt):
        site.attempt(header(fields={ATTEMPT: 16}))


def test_what_is_no_message_is_refused():
    said = to_tensors(written(Survivors(("charite", "mayo"))))
    assert read(said, Survivors).names == ("charite", "mayo")
    for raw in (b"", b"\xc1", b"\x81\xa5names\x01", said["['message']"].tobytes()[:-1], b"\x91" * 5000):
        with pytest.raises(BadRequest, match="what should be a message Survivors"):
            read({"['message']": np.frombuffer(raw, np.uint8)}, Survivors)
    with pytest.raises(BadRequest, match="there is no message Survivors"):
        read({}, Survivors)
