"""What the server sends may be treated by a stage, too: it encodes, every client expands, and the server
keeps what that loses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from tests.contracts import assert_norm
from tests.quadratic import MEANS, START, TASK, simulate

CLIENTS = [0, 1, 2]


def halved():
    """Half of the message goes out, and clients do not double it."""
    return fc.uplink.stage(
        "halved", encode=lambda state, own, update, key: (jax.tree.map(lambda x: x / 2, update), own)
    )


def test_clients_begin_from_what_was_sent_and_the_server_moves_its_own_model():
    """One step of size lr from START / 2: the change is lr (mean - START / 2), and it is added to START."""
    state = simulate(fc.algorithms.fedavg(TASK, optax.sgd(0.5)), pieces={"downlink": halved()})
    expected = START + 0.5 * (np.average(MEANS, weights=[2, 1, 3]) - START / 2)
    np.testing.assert_allclose(state.params, [expected], rtol=1e-6)


def test_what_the_downlink_loses_is_sent_later():
    """What was sent in all rounds adds up to all messages but what the server still keeps."""
    downlink = fc.uplink.feedback(fc.uplink.quantize(bits=2))
    composed = fc.compose(
        fc.algorithms.fedavg(fc.models.linear(features=5), optax.sgd(0.1)), downlink=downlink
    )
    message = {"w": jnp.array([0.3, -0.7, 1.0, 0.2, 0.05]), "b": jnp.array(0.4)}
    state = composed.init(jax.random.key(0), 3, message)
    read = jax.tree.map(jnp.zeros_like, message)
    for _ in range(7):
        sent, state = composed.broadcast(0, state)
        read = fc.tree.add(read, composed.listen(0, sent))
        state = state._replace(round=state.round + 1)
    residual, _ = state.downlink[0]
    assert float(fc.tree.norm(residual)) > 0.01
    assert_norm(fc.tree.add(read, residual), fc.tree.scale(7, message), 1e-6)


def test_a_message_in_16_bits_comes_back_in_16():
    task = fc.models.bfloat16(fc.models.linear(features=2))
    narrow = fc.Task(
        init=lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), task.init(key)), loss=task.loss
    )
    composed = fc.compose(fc.algorithms.fedavg(narrow, optax.sgd(0.1)), downlink=fc.uplink.quantize(bits=8))
    state = composed.init(jax.random.key(0), 1)
    sent, _ = composed.broadcast(0, state)
    assert sent.levels["w"].dtype == jnp.int8 and composed.listen(0, sent)["w"].dtype == jnp.bfloat16


def test_both_ends_of_a_downlink_keep_nothing_together():
    shared = fc.uplink.stage("shared", init=lambda shapes: jnp.float32(1))
    with pytest.raises(ValueError, match="downlink= has 'shared', of which both ends keep state"):
        fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1)), downlink=shared)
    ring = fc.uplink.stage("ring", encode=lambda state, own, update, key: (update.astype(jnp.int32), own))
    with pytest.raises(
        ValueError, match=r"downlink=ring does not give back by expand\(\) the message of exchange 0"
    ):
        fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1)), downlink=ring)
    with pytest.raises(TypeError, match="needs downlink= to be of type Stage"):
        fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1)), downlink=[fc.uplink.half()])


@pytest.mark.parametrize(
    "downlink",
    [fc.uplink.quantize(bits=4), fc.uplink.feedback(fc.uplink.half())],
    ids=["quantize", "feedback"],
)
def test_asynchronous_runs_send_as_rounds_do_or_say_why_not(downlink):
    data = fc.Clients.from_list(
        [{"x": np.full((n, 2), n, np.float32), "y": np.ones(n, np.float32)} for n in (2, 3, 1)]
    )
    composed = fc.compose(
        fc.algorithms.fedavg(fc.models.linear(features=2), optax.sgd(0.01)), downlink=downlink
    )
    plan = {"batch_size": 2, "epochs": 1, "lanes": 2}
    if downlink.name.startswith("feedback"):
        with pytest.raises(ValueError, match="keeps state at the server from message to message"):
            fc.AsynchronousSimulator(composed, data, fc.Buffer(3), **plan)
        return
    sync, late = (
        fc.Simulator(composed, data, **plan),
        fc.AsynchronousSimulator(composed, data, fc.Buffer(3), **plan),
    )
    expected, state = sync.init(jax.random.key(1)), late.init(jax.random.key(1))
    for _ in range(3):
        expected, _ = sync.run(expected, CLIENTS)
        state, _ = late.run(state, CLIENTS)
    assert_norm(state.params, expected.params, 1e-6)
