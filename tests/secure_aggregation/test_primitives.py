"""Published vectors of what the protocol is made of, and Shamir's promise by enumeration over a small
prime."""

import itertools
from collections import Counter

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedjax_core.secure_aggregation import graph, masks, shamir

unhex = bytes.fromhex


def test_aes_256_in_counter_mode_of_nist():
    """SP 800-38A, F.5.5: the mask is the keystream, so plain text with the mask by XOR is the cipher text."""
    key = unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    plain = unhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = unhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c52b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    mask = np.zeros(16, np.uint32)
    masks.add_mask(mask, key, counter=unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    np.testing.assert_array_equal(np.frombuffer(plain, "<u4") ^ mask, np.frombuffer(cipher, "<u4"))


def test_chacha20_and_its_box_of_rfc_8439():
    stream = (
        Cipher(ChaCha20(bytes(range(32)), unhex("01000000000000090000004a00000000")), None)
        .encryptor()
        .update(bytes(64))
    )
    assert stream[:16].hex() == "10f1e7e4d13b5915500fdd1fa32071c4"  # section 2.3.2
    text = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
    box = ChaCha20Poly1305(bytes(range(0x80, 0xA0))).encrypt(
        unhex("070000004041424344454647"), text, unhex("50515253c0c1c2c3c4c5c6c7")
    )
    # 2.8.2
    assert (
        box[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
        and box[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
    )


def test_a_box_opens_by_its_key_alone_and_as_it_was_sealed():
    box = masks.seal(bytes(32), b"two shares", b"from a to b")
    assert masks.unseal(bytes(32), box, b"from a to b") == b"two shares"
    for key, sent, about in (
        (bytes([1]) + bytes(31), box, b"from a to b"),
        (bytes(32), box[:-1] + b"x", b"from a to b"),
        (bytes(32), box, b"from b to a"),
    ):
        with pytest.raises(ValueError, match="the box was changed"):
            masks.unseal(key, sent, about)


def test_x25519_of_rfc_7748():
    """Section 6.1."""
    alice = X25519PrivateKey.from_private_bytes(
        unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = X25519PrivateKey.from_private_bytes(
        unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    assert (
        alice.public_key().public_bytes_raw().hex()
        == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    shared = masks.agreed(alice, bob.public_key().public_bytes_raw())
    assert shared == masks.agreed(bob, alice.public_key().public_bytes_raw())
    assert shared.hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    with pytest.raises(ValueError):
        masks.agreed(alice, bytes(32))


def test_hkdf_of_rfc_5869_and_that_keys_of_other_purposes_differ():
    """Test case 1."""
    found = HKDF(
        SHA256(), 42, salt=unhex("000102030405060708090a0b0c"), info=unhex("f0f1f2f3f4f5f6f7f8f9")
    ).derive(bytes([0x0B] * 22))
    assert (
        found.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )
    said = [("box", "a", "b"), ("box", "b", "a"), ("mask", "a", "b"), ("box", "ab", ""), ("boxa", "b")]
    derived = {masks.derive(bytes(32), session, *purpose) for session in (b"1", b"2") for purpose in said}
    assert len(derived) == 2 * len(said)


def test_each_of_the_256_bits_of_a_seed_changes_half_of_the_mask():
    def mask(seed):
        vector = np.zeros(2048, np.uint32)
        masks.add_mask(vector, seed)
        return vector

    seed = bytes(range(32))
    first, seen = mask(seed), []
    for bit in range(256):
        other = bytearray(seed)
        other[bit // 8] ^= 1 << bit % 8
        changed = mask(bytes(other))
        share = np.bitwise_count(first ^ changed).sum() / (32 * 2048)
        assert abs(share - 0.5) < 6 * 0.5 / np.sqrt(32 * 2048)
        seen.append(changed.tobytes())
    assert len(set(seen)) == 256


@pytest.mark.parametrize("length", [1, 3, 2**14 - 1, 2**14, 2**14 + 1, 3 * 2**14 + 5])
def test_a_mask_is_one_stream_however_long_and_comes_off_again(length):
    rng = np.random.default_rng(length)
    vector, long = rng.integers(0, 2**32, length, np.uint32), np.zeros(2**17, np.uint32)
    masked = vector.copy()
    masks.add_mask(masked, bytes(range(32)))
    masks.add_mask(long, bytes(range(32)))
    np.testing.assert_array_equal(masked, vector + long[:length])
    masks.add_mask(masked, bytes(range(32)), minus=True)
    np.testing.assert_array_equal(masked, vector)
    with pytest.raises(ValueError, match="a mask is added to a writeable uint32 vector"):
        masks.add_mask(vector.astype(np.int64), bytes(32))
    with pytest.raises(ValueError, match="a mask is added to a writeable uint32 vector"):
        masks.add_mask(long[::2], bytes(32))


@pytest.mark.parametrize(("n", "t"), [(1, 1), (3, 2), (4, 3), (5, 3)])
def test_any_threshold_of_shares_gives_the_secret_back(n, t):
    for secret in (0, 1, 2**256 - 1, shamir.PRIME - 1):
        shares = shamir.share(secret, t, range(1, n + 1))
        for points in itertools.chain.from_iterable(
            itertools.combinations(shares, k) for k in range(t, n + 1)
        ):
            assert shamir.recover({z: shares[z] for z in points}) == secret
        assert all(len(s.to_bytes(shamir.SIZE)) == 66 for s in shares.values())


def test_fewer_shares_fit_every_secret_equally_often(monkeypatch):
    """Over the prime 7, of all 49 polynomials of degree 2 for each secret: any two shares are as likely under
    every secret."""
    p, t, points = 7, 3, (1, 2, 3, 4)
    seen = {}
    for secret in range(p):
        for drawn in itertools.product(range(p), repeat=t - 1):
            draws = iter(drawn)
            monkeypatch.setattr(shamir.secrets, "randbelow", lambda below, draws=draws: next(draws))
            shares = shamir.share(secret, t, points, prime=p)
            assert shamir.recover({z: shares[z] for z in (4, 1, 2)}, prime=p) == secret
            for two in itertools.combinations(points, 2):
                seen.setdefault(two, Counter())[secret, *(shares[z] for z in two)] += 1
    assert all(len(counts) == p**3 and set(counts.values()) == {1} for counts in seen.values())


def test_bad_calls_of_shamir():
    for secret, t, points, said in (
        (shamir.PRIME, 1, [1], "a secret to share"),
        (1, 3, [1, 2], "a threshold of 3 of 2 shares"),
        (1, 1, [0, 1], "the share of point 0"),
        (1, 1, [1, 1], "points must be distinct"),
    ):
        with pytest.raises(ValueError, match=said):
            shamir.share(secret, t, points)
    with pytest.raises(ValueError, match="no share"):
        shamir.recover({})


def test_peers():
    names = [f"s{i}" for i in range(120)]
    assert all(len(near) == 99 for near in graph.peers(names[:100], b"x").values())
    few = graph.peers(names, b"x")
    assert all(
        len(near) == 50 and all(name in few[one] for one in near) and name not in near
        for name, near in few.items()
    )
    assert few != graph.peers(names, b"y") and few == graph.peers(names[::-1], b"x")
    assert graph.connected(few, names) and graph.connected({"a": ["b"], "b": ["a"], "c": []}, ["a", "b"])
    assert not graph.connected({"a": ["b"], "b": ["a", "c"], "c": ["b"]}, ["a", "c"])
    with pytest.raises(ValueError, match="the degree must be even"):
        graph.peers(names, b"x", degree=5)
