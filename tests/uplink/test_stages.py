import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_core import algorithms, compose, tree, uplink
from fedjax_core.uplink.base import alone
from tests.quadratic import MEANS, START, TASK, simulate

UPDATE = {"w": jnp.array([3.0, 0.0, -4.0]), "b": jnp.array([12.0])}  # norm 13


def send(stage, update, key=0, own=None):
    """One update to the wire and back: (what the server reads, what the client keeps)."""
    state, shapes = stage.init(tree.shapes(update)), tree.shapes(update)
    own = stage.init_client(shapes) if own is None else own
    sent, own = stage.encode(state, own, update, alone(jax.random.key(key)))
    return stage.expand(state, sent, shapes), own


def test_clip_scales_all_leaves_by_one_factor():
    got, _ = send(uplink.clip(6.5), UPDATE)
    assert np.allclose(got["w"], [1.5, 0.0, -2.0]) and np.allclose(got["b"], [6.0])
    assert float(tree.norm(got)) == pytest.approx(6.5)
    unchanged, _ = send(uplink.clip(13.0), UPDATE)
    assert np.array_equal(unchanged["w"], UPDATE["w"])


def test_clip_holds_again_after_a_lossy_stage():
    stage = uplink.chain(uplink.clip(1.0), uplink.quantize(bits=2))
    for key in range(20):
        got, _ = send(stage, UPDATE, key)
        assert float(tree.norm(got)) <= 1 + 1e-6


@pytest.mark.parametrize("bits", [2, 4, 8, 12])
def test_quantize_is_unbiased_within_its_step(bits):
    update = {"w": jnp.linspace(-1, 0.9, 20)}
    step = 1 / (2 ** (bits - 1) - 1)
    got = jax.vmap(lambda k: uplink.roundtrip(uplink.quantize(bits), update, k)["w"])(
        jax.random.split(jax.random.key(0), 4000)
    )
    got, meant = np.asarray(got, np.float64), np.asarray(update["w"])
    assert np.abs(got - meant).max() <= step * 1.0001
    error = np.abs(got.mean(axis=0) - meant)
    # five standard errors, each at most half a step
    assert error.max() <= 5 * (step / 2) / np.sqrt(4000) + 1e-6


@pytest.mark.parametrize(("bits", "size"), [(4, 1), (8, 1), (9, 2), (16, 2)])
def test_bytes_on_the_wire(bits, size):
    update = {"w": jnp.zeros((10, 3)), "b": jnp.zeros(5)}
    assert tree.nbytes(uplink.message_shapes(uplink.quantize(bits), update)) == 35 * size + 2 * 4


def test_half_rounds_to_nearest_in_two_bytes():
    update = {"w": jnp.array([1 + 2**-8 + 2**-12, 1 + 2**-8 - 2**-12, 1e30, jnp.inf]), "n": jnp.int32(7)}
    assert uplink.message_shapes(uplink.half(), update)["w"].dtype == jnp.bfloat16
    got, _ = send(uplink.half(), update)
    assert got["w"].dtype == jnp.float32 and got["n"] == 7
    assert (
        got["w"][:2].tolist() == [1 + 2**-7, 1.0]
        and abs(float(got["w"][2]) / 1e30 - 1) <= 2**-9
        and jnp.isinf(got["w"][3])
    )
    assert jnp.isinf(send(uplink.half("float16"), update)[0]["w"][2])


def test_an_update_that_is_not_finite_stays_so_on_the_wire():
    got, _ = send(uplink.quantize(8), {"w": jnp.array([1.0, jnp.inf])})
    assert not bool(tree.finite(got))


@pytest.mark.proves("feedback", by="identity: what is sent in the end is what was meant")
def test_feedback_sends_everything_in_the_end():
    """What is sent over many rounds differs from what was meant by no more than one residual."""
    stage, own, sent = uplink.feedback(uplink.quantize(bits=2)), None, 0.0
    for key in range(50):
        got, own = send(stage, UPDATE, key, own)
        sent += np.asarray(got["w"])
    residual = np.asarray(own[0]["w"])
    assert np.allclose(sent + residual, 50 * np.asarray(UPDATE["w"]), rtol=1e-4)
    assert np.abs(residual).max() <= 24 + 1e-4  # one step of the coarsest level seen


def test_a_chain_expands_in_reverse():
    double = uplink.stage(
        "double",
        encode=lambda s, o, u, k: (tree.scale(2.0, u), o),
        expand=lambda s, m, shapes: tree.scale(0.5, m),
    )
    add = uplink.stage(
        "add",
        encode=lambda s, o, u, k: (jax.tree.map(lambda x: x + 1, u), o),
        expand=lambda s, m, shapes: jax.tree.map(lambda x: x - 1, m),
    )
    stage = uplink.chain(double, add)
    sent, _ = stage.encode(stage.init(UPDATE), stage.init_client(UPDATE), UPDATE, alone(jax.random.key(0)))
    assert np.allclose(sent["w"], 2 * UPDATE["w"] + 1)
    assert np.allclose(stage.expand(stage.init(UPDATE), sent, UPDATE)["w"], UPDATE["w"])


def test_clip_in_a_round_bounds_each_client():
    state = simulate(
        algorithms.fedavg(TASK, optax.sgd(1.0), weighting=algorithms.uniform),
        pieces={"uplink": uplink.clip(1.0)},
    )
    assert float(state.params[0]) == pytest.approx(START + np.clip(MEANS - START, -1, 1).mean(), abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uplink.clip(0), "clip needs a bound > 0 on the norm, got 0"),
        (lambda: uplink.clip(float("nan")), "clip needs a bound > 0"),
        (lambda: uplink.quantize(1), "2 <= bits <= 16, got 1"),
        (lambda: uplink.half("float32"), "half needs dtype 'bfloat16' or 'float16', got 'float32'"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pieces_that_do_not_fit_are_named():
    algorithm = algorithms.fedavg(TASK, optax.sgd(0.1))
    with pytest.raises(
        TypeError, match=r"uplink= to be of type Stage, got list: join several stages with fc.uplink.chain"
    ):
        compose(algorithm, uplink=[uplink.clip(1.0)])
    with pytest.raises(TypeError, match=r"aggregator= to be of type Aggregator, got str"):
        compose(algorithm, aggregator="mean")
    with pytest.raises(TypeError, match=r"algorithm= to be of type Algorithm, got Task"):
        compose(TASK)
    with pytest.raises(TypeError, match=r"chain\(\) takes stages, but argument 1 is a float"):
        uplink.chain(uplink.clip(1.0), 8.0)
    with pytest.raises(TypeError, match=r"feedback\(\) wraps a stage, got int"):
        uplink.feedback(8)
    half = uplink.stage("half", expand=lambda s, m, shapes: jax.tree.map(lambda x: x.astype(jnp.float16), m))
    with pytest.raises(
        ValueError,
        match=r"the update of exchange 0 after half and mean changed .* from float32\[1\] to float16\[1\]",
    ):
        compose(algorithm, uplink=half)


def ring():
    """Sends whole numbers, which only `finish` reads as what they stand for."""

    def finish(state, value, info, key):
        return jax.tree.map(lambda x: x.astype(jnp.float32) / 64, value), state

    return uplink.stage(
        "ring",
        encode=lambda s, o, u, k: (jax.tree.map(lambda x: (64 * x).astype(jnp.int32), u), o),
        finish=finish,
    )


@pytest.mark.parametrize(
    "make", [lambda: uplink.chain(uplink.clip(1.0), ring()), lambda: uplink.feedback(ring())]
)
def test_a_stage_that_decodes_only_in_the_end_is_not_put_around_others(make):
    """What clips, or keeps what is lost, would do so to numbers that are not decoded, and the model would
    never move."""
    with pytest.raises(
        ValueError,
        match=r"stage 'ring' does not give back by expand\(\).*float32\[1\] before and int32\[1\] after.*first",
    ):
        compose(algorithms.fedavg(TASK, optax.sgd(0.1)), uplink=make())


def test_a_stage_of_another_structure_is_not_put_around_others():
    counted = uplink.stage("counted", encode=lambda s, o, u, k: ((u, jnp.float32(1)), o))
    with pytest.raises(ValueError, match=r"stage 'counted' does not give back.*the structure is"):
        compose(algorithms.fedavg(TASK, optax.sgd(0.1)), uplink=uplink.chain(uplink.clip(1.0), counted))


def test_what_a_stage_leaves_is_told_only_where_it_says_that_it_may_be():
    own, noisy = (
        uplink.chain(uplink.clip(1.0), uplink.feedback(uplink.quantize(8)), uplink.half()),
        uplink.stage("noise"),
    )
    assert own.measurable and not noisy.measurable
    assert not uplink.chain(uplink.clip(1.0), noisy).measurable and not uplink.feedback(noisy).measurable
