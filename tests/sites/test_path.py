"""An update's whole way from a site to the coordinator's aggregate, with nothing of Ray: what is refused on
it is recorded by its code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.audit import Log, show, verify
from fedjax_core.sites.coordinator.validation import ExpectedUpdate, validate
from fedjax_core.sites.refusal import Refused
from fedjax_core.sites.wire.envelope import Header, decode, encode
from fedjax_core.sites.wire.identity import Roster, SiteKey
from fedjax_core.sites.wire.replay import ReplayGuard
from fedjax_core.sites.wire.trees import from_tensors, leaf_specs, to_tensors
from fedjax_core.uplink.base import alone

CANARY = 77_123.5  # a value of the site's data


@pytest.fixture(scope="module")
def composed():
    algorithm = fc.algorithms.fedavg(fc.models.linear(features=3), local=optax.sgd(0.1))
    return fc.compose(algorithm, uplink=fc.uplink.chain(fc.uplink.clip(1.0), fc.uplink.quantize(bits=8)))


def test_what_the_uplink_sends_arrives_and_what_is_wrong_is_recorded(tmp_path, composed):
    site, coordinator = SiteKey.make("charite"), SiteKey.make("coordinator")
    state = composed.init(jax.random.key(0), population=1)
    shapes = composed.report_shapes(0, state.server, jax.tree.map(lambda x: x[0], state.clients.own))

    def send(update, key):
        return composed.uplink.encode(
            state.uplink[0], composed.uplink.init_client(shapes.update), update, alone(key)
        )[0]

    update = jax.tree.map(lambda x: jnp.full(x.shape, CANARY, x.dtype), shapes.update)
    sent = jax.jit(send)(update, jax.random.key(1))
    expected_shapes = jax.eval_shape(send, shapes.update, jax.eval_shape(lambda: jax.random.key(1)))
    expected = ExpectedUpdate(
        run="r",
        round=0,
        exchange=0,
        config="ab",
        kinds=leaf_specs(expected_shapes),
        max_weight=1e6,
        max_norm=1e4,
    )
    header = Header(
        kind="update", run="r", round=0, exchange=0, sender="charite", recipient="coordinator", sequence=1, created_unix_ms=0, config="ab",
        fields={"weight": 3.0, "examples": 3, "data": "f00d"},
    )  # fmt: skip
    raw = encode(header, to_tensors(sent), site)

    guard, accepted = ReplayGuard("r", 0), []
    with Log(tmp_path, coordinator) as log:
        for message in (
            raw[:-1] + bytes([raw[-1] ^ 1]),
            raw,
            raw,
            encode(header, {"x": np.full(1, CANARY)}, site),
        ):
            try:
                envelope = decode(message, Roster({"charite": site.public}), recipient="coordinator")
                heard = envelope.header
                guard = guard.accept(
                    sender=heard.sender, run=heard.run, round=heard.round, sequence=heard.sequence
                )
                verdict = validate(envelope, expected)
                log.record(
                    heard.sender,
                    "update",
                    run="r",
                    round=0,
                    about=verdict._asdict() | {"digest": heard.digest},
                )
                accepted.append(envelope)
            except Refused as refusal:
                log.record(
                    "unknown",
                    "refused",
                    run="r",
                    round=0,
                    about={"code": refusal.code, "reason": str(refusal)},
                )

    assert [entry.about["code"] for entry in show(tmp_path)] == [
        "tampered-body",
        "accepted",
        "replayed",
        "replayed",
    ]
    assert verify(tmp_path, [coordinator.public]).n == 3
    assert str(CANARY).encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    (envelope,) = accepted
    received = from_tensors(envelope.tensors, like=expected_shapes)
    jax.tree.map(np.testing.assert_array_equal, received, jax.device_get(sent))
    value, fine = composed.receive(0, state.uplink[0], jax.tree.map(jnp.asarray, received), jnp.float32(3.0))
    assert bool(fine) and jax.tree.structure(value) == jax.tree.structure(shapes.update)
