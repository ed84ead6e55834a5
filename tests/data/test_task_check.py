"""One check of a task on data: shapes of every function, values of labels, and what the loss of a few
examples says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core import Clients, Task, evaluate, models, predict
from fedjax_core.data.task_check import check_data

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
Y = np.array([0, 1, 1, 0, 1, 0], np.float32)


def clients(y=Y, **more):
    return Clients.from_arrays({"x": X, "y": y, **more}, offsets=[0, 4, 6], ids=["a", "b"], allow_nan=True)


def squares(w, batch, key=None):
    return (batch["x"] @ w - batch["y"]) ** 2


def task(loss=squares, init=lambda key: jnp.zeros(3), **more):
    return Task(init, loss, **more)


SHAPES = {
    "the mean inside": (
        lambda w, b, k: squares(w, b).mean(),
        "must return one floating number an example.* shape \\(\\)",
    ),
    "an axis more": (lambda w, b, k: squares(w, b)[:, None], r"returned shape \(2, 1\)"),
    "whole numbers": (lambda w, b, k: squares(w, b).astype(jnp.int32), "dtype int32"),
    "all pairs": (
        lambda w, b, k: squares(w, b)[:, None] - squares(w, b)[None, :],
        r"Every example met every other",
    ),
    "a dict": (lambda w, b, k: {"loss": squares(w, b)}, "returned a dict"),
    "another column": (
        lambda w, b, k: squares(w, b) * b["z"],
        "looks up 'z', which is not there: the data have the columns 'x', 'y'",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_losses_of_another_shape_are_refused(name):
    loss, said = SHAPES[name]
    with pytest.raises(ValueError, match=said):
        check_data(task(loss), clients(), batch_size=2)


def test_a_mean_is_told_even_where_a_batch_has_one_example_or_as_many_as_features():
    for size in (1, 3):
        with pytest.raises(ValueError, match="one floating number an example"):
            check_data(task(lambda w, b, k: squares(w, b).mean(keepdims=True)), clients(), batch_size=size)
        with pytest.raises(ValueError, match="one floating number an example"):
            check_data(task(lambda w, b, k: b["x"].mean(0) * w), clients(), batch_size=size)


@pytest.mark.parametrize(
    "value",
    [
        lambda hits: hits.mean(),
        lambda hits: hits[:, None],
        lambda hits: jnp.tile(hits[:, None], (1, len(hits))),
    ],
)
def test_metrics_of_another_shape_are_refused_in_training_and_in_evaluation(value):
    wrong = task(metrics=lambda w, b: {"accuracy": value((squares(w, b) < 0.25).astype(jnp.float32))})
    with pytest.raises(ValueError, match="the metric 'accuracy' must be one number an example"):
        check_data(wrong, clients(), batch_size=2)
    with pytest.raises(ValueError, match="the metric 'accuracy' must be one number an example"):
        evaluate(wrong, jnp.zeros(3), clients())


def test_predictions_without_a_row_an_example_and_parameters_that_are_none_are_refused():
    wrong = task(predict=lambda w, b: w)
    with pytest.raises(ValueError, match=r"predict returns must have a row an example"):
        check_data(wrong, clients(), batch_size=2)
    with pytest.raises(ValueError, match=r"predict returns must have a row an example"):
        predict(wrong, jnp.zeros(3), clients())
    with pytest.raises(
        ValueError, match=r"parameter \['n'\] of dtype int32, and a gradient trains only floating ones"
    ):
        check_data(
            task(init=lambda key: {"w": jnp.zeros(3), "n": jnp.zeros((), jnp.int32)}), clients(), batch_size=2
        )


MODELS = {
    "linear": models.linear(3), "logistic, one logit": models.logistic(3, 1), "logistic": models.logistic(3, 2),
    "mlp": models.mlp(3, (4,), classes=2), "one's own": task(),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_column_target_is_refused_by_name_with_the_way_out(name):
    with pytest.raises(
        ValueError, match=r"column 'y' has shape \[n, 1\], and the task needs \[n\].*Pass y\[:, 0\]"
    ):
        check_data(MODELS[name], clients(Y[:, None]), batch_size=2)
    with pytest.raises(ValueError, match=r"column 'y' has shape \[n, 1\]"):
        evaluate(MODELS[name], MODELS[name].init(jax.random.key(0)), clients(Y[:, None]))


def test_survival_columns_too_and_a_target_that_the_task_means_so_is_taken():
    survival = Clients.from_list([{"x": X, "time": np.arange(6.0)[:, None], "event": Y[:, None]}])
    with pytest.raises(
        ValueError, match=r"column 'event' .*Pass event\[:, 0\]; column 'time' .*Pass time\[:, 0\]"
    ):
        check_data(models.cox(3), survival, batch_size=4)
    check_data(task(lambda w, b, k: (b["x"] @ w - b["y"][:, 0]) ** 2), clients(Y[:, None]), batch_size=2)


def test_pairs_that_are_summed_away_are_found_by_numbers():
    """The shape is right, and the loss is zero at the beginning for all: only other numbers in the place of
    padding tell."""
    for loss in (
        lambda w, b, k: ((b["x"] @ w)[:, None] - b["y"][None, :]).mean(axis=1) ** 2,
        lambda w, b, k: squares(w, b) - squares(w, b).mean(),
        lambda w, b, k: jnp.sum(b["x"] - b["x"].mean(axis=0, keepdims=True), axis=1) * w.sum(),
    ):
        with pytest.raises(ValueError, match="changes with examples of its batch that the mask leaves out"):
            check_data(task(loss), clients(), batch_size=2)


def test_examples_may_meet_where_the_mask_is_heeded_and_batches_of_one_are_told(caplog):
    def centred(w, b, key):
        mean = jnp.sum(b["x"] @ w * b.mask) / jnp.maximum(b.mask.sum(), 1)
        return (b["x"] @ w - mean - b["y"]) ** 2

    check_data(task(centred), clients(), batch_size=2)
    check_data(task(lambda w, b, k: squares(w, b) * b.mask), clients(), batch_size=1)
    survival = Clients.from_list([{"x": X, "time": np.arange(6.0), "event": Y}])
    check_data(models.cox(3), survival, batch_size=2)
    assert not caplog.records
    for met, data in ((task(centred), clients()), (models.cox(3), survival)):
        check_data(met, data, batch_size=1)
    assert ["with batch_size=1 there are none to compare" in record.message for record in caplog.records] == [
        True,
        True,
    ]


LABELS = {
    "-1 and 1": 2 * Y - 1, "1 and 2": Y + 1, "one of 1.5": np.where(np.arange(6) == 4, 1.5, Y),
    "NaN": np.where(np.arange(6) == 4, np.nan, Y),
    "too large": np.where(np.arange(6) == 4, 7, Y).astype(np.int32),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("classes", [1, 2])
def test_labels_that_are_no_classes_are_refused_by_column_client_and_row(name, classes):
    where = (
        r"client 0 \(id 'a'\), its row [0-3]"
        if name in ("-1 and 1", "1 and 2")
        else r"client 1 \(id 'b'\), its row 0"
    )
    for dtype in (np.float32, np.float64) if LABELS[name].dtype.kind == "f" else (np.int32, np.uint8):
        with pytest.raises(ValueError, match=rf"label in column 'y' at {where}") as refused:
            check_data(models.logistic(3, classes), clients(LABELS[name].astype(dtype)), batch_size=2)
        assert "1.5" not in str(refused.value) and "7" not in str(refused.value)  # somebody's own
    with pytest.raises(ValueError, match=rf"label in column 'y' at {where}"):
        evaluate(
            models.logistic(3, classes),
            models.logistic(3, classes).init(jax.random.key(0)),
            clients(LABELS[name]),
        )


def test_whole_floats_and_truth_values_are_labels():
    for y in (Y, Y.astype(np.float64), Y.astype(bool), Y.astype(np.uint8)):
        check_data(models.logistic(3, 2), clients(y), batch_size=2)


@pytest.mark.parametrize("y", [LABELS["1 and 2"], LABELS["one of 1.5"]], ids=["1 and 2", "1.5"])
def test_a_loss_that_is_not_finite_at_the_beginning_is_refused_by_client_and_row(y):
    """A task of one's own says nothing of its labels; its loss does."""
    own = task(lambda w, b, k: models.cross_entropy(b["x"] @ w, b["y"]), init=lambda key: jnp.zeros((3, 2)))
    check_data(own, clients(), batch_size=2)
    with pytest.raises(
        ValueError,
        match=r"the loss of client [01] \(id '[ab]'\), its row [0-3], is NaN for the model as it begins",
    ):
        check_data(own, clients(y), batch_size=2)


def test_codes_beyond_an_embedding_are_refused_like_labels():
    def loss(table, b, key):
        return jnp.take(table, b["tokens"], axis=0).sum((1, 2)) ** 2

    own, tokens = task(loss, init=lambda key: jnp.zeros((10, 2))), np.arange(30).reshape(6, 5) % 10
    check_data(own, clients(tokens=tokens), batch_size=2)
    with pytest.raises(ValueError, match=r"the loss of client 1 \(id 'b'\), its row 1, is NaN"):
        check_data(own, clients(tokens=np.where(np.arange(30).reshape(6, 5) == 29, 10, tokens)), batch_size=2)


def test_what_was_found_fine_is_not_computed_again():
    calls = []

    def counted(w, b, key):
        calls.append(1)
        return squares(w, b)

    data, own = clients(), task(counted)
    check_data(own, data, batch_size=2)
    first = len(calls)
    check_data(own, data, batch_size=2)
    assert len(calls) == first > 0
