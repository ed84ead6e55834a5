"""Addressed generators: the same address, the same draws; another in any part, others."""

from fedjax_core.data import host_random


def test_every_part_of_the_address_counts():
    addresses = [
        (host_random.COHORT, 0, 0),
        (host_random.SPLIT, 0, 0),
        (host_random.COHORT, 1, 0),
        (host_random.COHORT, 0, 1),
        (host_random.COHORT, 0, 2**64 - 1),
    ]
    first = [host_random.generator(*address).integers(2**63) for address in addresses]
    assert len(set(first)) == len(addresses)
    assert first == [host_random.generator(*address).integers(2**63) for address in addresses]
