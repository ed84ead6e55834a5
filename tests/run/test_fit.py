"""`fit` ends where plain rounds end, judges as told, stops when asked, and refuses what cannot be right."""

import logging
import math
import os
import signal
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.metrics import Mean, Sum
from fedjax_core.run import Best, fit, load_best
from fedjax_core.run.lock import claim
from fedjax_core.run.log import read_records
from fedjax_core.run.plan import Plan, read_plan
from tests.run.small import averaging, bits, clients, cohorts


@pytest.fixture(scope="module")
def sim():
    made = averaging()
    made.reserve(6)  # all of them, whichever test comes first
    return made


class Altered:
    """A simulator whose metrics are made up by `alter(round, metrics)`, and which notes what is asked of
    it."""

    def __init__(self, sim, alter=lambda round, metrics: metrics):
        self.sim, self.alter, self.calls = sim, alter, []

    def __getattr__(self, name):
        return getattr(self.sim, name)

    def run(self, state, cohort, **how):
        round = int(state.round) + 1
        self.calls.append(("run", round))
        state, metrics = self.sim.run(state, cohort, **how)
        return state, self.alter(round, metrics)


def scripted(values):
    """An evaluation that says values[round]."""
    return lambda sim, state: {"score": values[int(state.round)], "rounds": float(state.round)}


def trained(history):
    return [record["round"] for record in history.records if record["kind"] == "train"]


def test_it_is_the_rounds_one_after_another(sim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = cohorts()
    state = sim.init(jax.random.key(4))
    losses = []
    for round in range(5):
        state, metrics = sim.run(state, draw(round))
        losses.append(float(metrics["loss"]))
    history = fit(sim, 5, draw, key=jax.random.key(4))
    assert bits(history.state) == bits(state)
    np.testing.assert_array_equal([record["loss"] for record in history.records], losses)
    assert trained(history) == [1, 2, 3, 4, 5] and (history.stopped, history.best) == ("finished", None)
    assert list(tmp_path.iterdir()) == []  # nothing is written without a run_dir


def test_the_folder_says_how_many_rounds_are_to_be_and_why_they_stopped(sim, tmp_path):
    plans = []
    fit(sim, 3, cohorts(), tmp_path, progress=False, each_round=lambda *_: plans.append(read_plan(tmp_path)))
    assert plans == [Plan(3)] * 3 and read_plan(tmp_path) == Plan(3, "finished") and read_plan(tmp_path).over
    fit(sim, 5, cohorts(), tmp_path, progress=False, each_round=lambda *_: True)  # which ends it early
    assert read_plan(tmp_path) == Plan(5, "early stop") and not Plan(5, "interrupted").over
    (tmp_path / "plan.json").write_text('{"rounds": "many"')
    assert read_plan(tmp_path) == Plan()


def test_groups_of_rounds_log_the_same(sim):
    one, four = (fit(sim, 6, cohorts(), rounds_per_dispatch=group) for group in (1, 4))
    assert trained(one) == trained(four)
    np.testing.assert_allclose([r["loss"] for r in one.records], [r["loss"] for r in four.records], rtol=1e-6)


def test_curves_are_read_off_the_records(sim):
    history = fit(sim, 5, fc.cohorts.everyone(6), evaluate_every=2)
    rounds, values = history.curve("accuracy")
    assert rounds.tolist() == [0, 2, 4] and values.tolist() == [
        r["accuracy"] for r in history.records if r["kind"] == "eval"
    ]
    assert history.curve("loss", "train")[0].tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(KeyError, match=r"no 'eval' record has 'auroc': there are accuracy, loss"):
        history.curve("auroc")
    with pytest.raises(KeyError, match=r"no 'eval' record has 'loss': fit\(evaluate_every=\) makes them"):
        fit(sim, 1, fc.cohorts.everyone(6)).curve("loss")


def test_given_params_are_where_it_starts(sim):
    params = jax.tree.map(jnp.ones_like, sim.init(jax.random.key(0)).params)
    history = fit(sim, 1, lambda round: [], params=params)
    assert bits(history.state.params) == bits(params)


def test_metrics_are_read_while_the_next_round_is_at_work(sim, monkeypatch):
    noted = Altered(sim)
    get = jax.device_get

    def device_get(x):
        if isinstance(x, dict) and "loss" in x:
            noted.calls.append(("read", None))
        return get(x)

    monkeypatch.setattr(jax, "device_get", device_get)
    fit(noted, 4, cohorts())
    assert [call for call, _ in noted.calls] == ["run", "run", "read", "run", "read", "run", "read", "read"]


def test_best_is_the_first_lowest_and_is_kept(sim, tmp_path):
    values = {0: 9.0, 2: 5.0, 4: 3.0, 6: 4.0, 8: 3.0, 10: math.nan}
    history = fit(
        sim,
        10,
        cohorts(),
        tmp_path,
        checkpoint_every=5,
        keep=1,
        evaluate_every=2,
        evaluate=scripted(values),
        best="score",
    )
    assert history.best == Best(4, 3.0)
    assert [r["score"] for r in history.records if r["kind"] == "eval"][:-1] == list(values.values())[:-1]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000004", "00000010"]
    expected = fit(sim, 4, cohorts())
    assert bits(load_best(tmp_path, sim)) == bits(expected.state)


def test_mode_max_and_default_evaluation(sim):
    history = fit(sim, 4, cohorts(), evaluate_every=2, best="accuracy", mode="max")
    pooled = sim.evaluate(history.state).pooled
    last = history.records[-1]
    assert {name: last[name] for name in pooled} == pooled
    assert history.best.value == max(r["accuracy"] for r in history.records if r["kind"] == "eval")


def test_evaluation_on_other_clients(sim):
    other = fc.Clients.from_list([clients()[0]])
    history = fit(sim, 1, cohorts(), evaluate_every=1, evaluate=other)
    assert history.records[-1]["loss"] == sim.evaluate(history.state, other).pooled["loss"]


@pytest.mark.parametrize("stop_after", [None, 1, 3, 4, 7])
def test_patience_ends_the_run_at_the_same_round_however_often_it_is_interrupted(sim, tmp_path, stop_after):
    values = [9.0, 8.0, 7.0, 7.5, 6.0, 6.5, 6.4, 6.3, 5.0, 4.0, 3.0, 2.0]
    settings = {
        "evaluate_every": 1,
        "evaluate": scripted(values),
        "best": "score",
        "patience": 3,
        "checkpoint_every": 5,
    }
    if stop_after is not None:
        fit(sim, stop_after, cohorts(), tmp_path, **settings)
    history = fit(sim, 11, cohorts(), tmp_path, **settings)
    assert (history.stopped, history.best, int(history.state.round)) == ("early stop", Best(4, 6.0), 7)
    again = fit(sim, 11, cohorts(), tmp_path, **settings)
    assert (again.stopped, again.best, again.records) == ("early stop", history.best, history.records)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_round_and_puts_handlers_back(sim, tmp_path, number):
    draw, before = cohorts(), signal.getsignal(number)

    def interrupting(round):
        if round == 2:
            os.kill(os.getpid(), number)
        return draw(round)

    history = fit(sim, 9, interrupting, tmp_path)
    assert (history.stopped, int(history.state.round), trained(history)) == ("interrupted", 3, [1, 2, 3])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000000", "00000003"]
    assert signal.getsignal(number) is before


def test_a_second_signal_is_keyboard_interrupt(sim):
    def impatient(round):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return [0]

    with pytest.raises(KeyboardInterrupt):
        fit(sim, 9, impatient)


def test_in_another_thread_signals_are_left_alone(sim):
    found = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(
        target=lambda: found.append(
            fit(sim, 2, lambda round: [0] if signal.getsignal(signal.SIGINT) is before else 1 / 0)
        )
    )
    thread.start()
    thread.join()
    assert found[0].stopped == "finished"


def test_a_loss_that_is_not_finite_is_told_once(sim, caplog):
    def alter(round, metrics):
        return {**metrics, "loss": Mean(jnp.float32(jnp.nan if round >= 3 else 1), jnp.float32(1))}

    history = fit(Altered(sim, alter), 5, cohorts())
    assert [m.getMessage() for m in caplog.records] == [
        "the training loss is nan in round 3: a smaller learning rate or clipping may help",
    ]
    assert math.isnan(history.records[-1]["loss"])


def test_a_round_without_examples_has_no_loss_and_is_no_alarm(sim, caplog):
    history = fit(sim, 1, lambda round: [])
    assert math.isnan(history.records[0]["loss"]) and not caplog.records


def test_a_run_in_which_nobody_ever_counts_ends_with_the_example_that_is_to_blame():
    """Both clients have an example that no model can use, and a few looked at beforehand do not show it."""
    x = np.ones((20, 2), np.float32)
    x[12, 1] = 0
    task = fc.Task(
        lambda key: jnp.zeros(2),
        lambda w, batch, key: jnp.log(batch["x"][:, 1]) * (1 + w[0]) + batch["x"] @ w,
    )
    simulator = fc.Simulator(
        fc.compose(fc.algorithms.fedavg(task, optax.sgd(0.1))),
        fc.Clients.from_list([{"x": x}, {"x": x}]),
        batch_size=20,
        lanes=1,
    )
    with pytest.raises(
        ValueError, match=r"all clients' reports were refused.* the loss of client 0 \(id 0\), its row 12"
    ):
        fit(simulator, 3, fc.cohorts.everyone(2), progress=False)


def test_refused_reports_are_told(sim, caplog):
    history = fit(
        Altered(sim, lambda round, m: {**m, "refused": Sum(jnp.float32(2 * (round > 1)))}), 4, cohorts()
    )
    assert [m.getMessage() for m in caplog.records] == [
        "round 2 refused 2 reports that were not finite, and went on without them",
        "reports were refused in 3 rounds: see `refused` in the records",
    ]
    assert [r["refused"] for r in history.records] == [0, 2, 2, 2]


@pytest.mark.parametrize(
    "settings, error, said",
    [
        ({"rounds": 0}, ValueError, r"rounds must be a whole number of at least 1, got 0"),
        ({"rounds": 2.5}, ValueError, r"rounds must be a whole number of at least 1, got 2\.5"),
        (
            {"checkpoint_every": 0},
            ValueError,
            r"checkpoint_every must be a whole number of at least 1, got 0",
        ),
        ({"keep": 0}, ValueError, r"keep must be .* at least 1, got 0"),
        ({"rounds_per_dispatch": True}, ValueError, r"rounds_per_dispatch must be .* at least 1, got True"),
        ({"evaluate_every": -1}, ValueError, r"evaluate_every must be .* at least 0, got -1"),
        ({"patience": 0, "evaluate_every": 1}, ValueError, r"patience must be .* at least 1, got 0"),
        (
            {"patience": 2},
            ValueError,
            r"patience= is given, but evaluate_every=0 never evaluates: set evaluate_every=",
        ),
        (
            {"evaluate": scripted([1.0])},
            ValueError,
            r"evaluate= is given, but evaluate_every=0 never evaluates",
        ),
        (
            {"evaluate": [1], "evaluate_every": 1},
            TypeError,
            r"evaluate= must be fc\.Clients or a function .* got list; leave it out",
        ),
        (
            {"mode": "least"},
            ValueError,
            r"mode= says whether .*'loss' is best: \"min\" or \"max\", got 'least'",
        ),
        (
            {"best": "auroc", "evaluate_every": 1},
            ValueError,
            r"best='auroc' is not among .*: choose one of \['accuracy', 'loss'\]",
        ),
        (
            {"cohorts": 3},
            TypeError,
            r"cohorts= must be a function of the round or a list with a cohort for each, got int: use",
        ),
        (
            {"cohorts": [0, 1]},
            ValueError,
            r"a list of cohorts has one for each round, .* lambda round: \[0, 1\]",
        ),
        ({"cohorts": [[0, 9]]}, ValueError, r"names client 9, but the population is clients 0 to 5"),
        (
            {"cohorts": [[0, 1]], "rounds": 2},
            ValueError,
            r"cohorts= lists 1 rounds, and rounds=2: list a cohort for each",
        ),
        (
            {"cohorts": fc.cohorts.uniform(7, 2)},
            ValueError,
            r"cohorts= draws from 7 clients, but the simulation has 6; build both",
        ),
        ({"key": 3}, TypeError, r"key= must be one typed key, such as jax\.random\.key\(0\), got 3"),
        ({"key": jax.random.split(jax.random.key(0))}, TypeError, r"key= must be one typed key"),
    ],
)
def test_what_cannot_be_right_is_refused_with_the_way_out(sim, settings, error, said):
    with pytest.raises(error, match=said):
        fit(sim, **{"rounds": 1, "cohorts": cohorts(), **settings})


def test_a_run_dir_that_cannot_be_had(sim, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        NotADirectoryError,
        match=r"run_dir .*file' cannot be a folder, for .*/file is a file\. Choose another run_dir",
    ):
        fit(sim, 1, cohorts(), tmp_path / "file")
    with pytest.raises(
        NotADirectoryError, match=r"below' cannot be a folder, for .*/file is a file\. Choose another"
    ):
        fit(sim, 1, cohorts(), tmp_path / "file" / "runs" / "below")
    with (
        claim(tmp_path / "x"),
        pytest.raises(
            RuntimeError, match=rf"x' is in use by process {os.getpid()} on .*; .* choose another run_dir"
        ),
    ):
        fit(sim, 1, cohorts(), tmp_path / "x")

    def refuse(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "mkdir", refuse)
        with pytest.raises(
            PermissionError,
            match=r"run_dir .*y' cannot be written .*Read-only.* or run_dir=None to keep nothing",
        ):
            fit(sim, 1, cohorts(), tmp_path / "y")


def test_one_of_several_processes_takes_no_run_dir(sim, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(
        ValueError,
        match=r"x' is written by one process, and jax.distributed has 4: .* or train with fc.Cluster",
    ):
        fit(sim, 1, cohorts(), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_parents_are_made_and_a_relative_run_dir_stays_where_it_was(sim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(sim, 1, cohorts(), "runs/deep/x")
    assert (tmp_path / "runs" / "deep" / "x" / "metrics.jsonl").exists()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, caplog):
    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with caplog.at_level(logging.WARNING), claim(tmp_path):
        assert "has no locks" in caplog.text


def test_load_best_needs_an_evaluation(sim, tmp_path):
    fit(sim, 1, cohorts(), tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match=r"best does not exist: fit\(\) keeps a best model where evaluate_every= is above 0",
    ):
        load_best(tmp_path, sim)


@pytest.mark.parametrize("name", ["round", "kind"])
def test_a_metric_of_an_evaluation_is_not_called_as_what_every_record_has(sim, name):
    with pytest.raises(ValueError, match=f"evaluate= gives a metric called '{name}'"):
        fit(sim, 1, cohorts(), evaluate_every=1, evaluate=lambda sim, state: {"loss": 1.0, name: 2.0})


def test_whom_a_round_lacked_is_in_its_record_and_said_at_once(tmp_path, capsys):
    """A backend of real sites tells it by `lacked(round)`."""
    sim = averaging()
    sim.lacked = lambda round: {"mayo": "no reply in 12 s", "oslo": "declined"} if round in (30, 31) else {}
    history = fit(sim, 33, cohorts(), tmp_path)
    found = [record.get("lacked") for record in history.records if record["kind"] == "train"]
    assert found == [None] * 29 + ["mayo oslo"] * 2 + [None] * 2
    assert [
        record.get("lacked")
        for record in read_records(tmp_path / "metrics.jsonl")
        if record["kind"] == "train"
    ] == found
    lines = [line for line in capsys.readouterr().err.splitlines() if "round 3" in line]
    assert any(line.startswith("round 30 of 33") and line.endswith(", without mayo, oslo") for line in lines)
    assert any(line.startswith("round 32 of 33") and "without" not in line for line in lines)
