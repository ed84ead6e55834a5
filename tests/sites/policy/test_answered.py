"""A site tells of a model once: what is asked again is not counted, other models of a round are refused, and
there is an end to answers."""

import dataclasses
import json
import os
import shutil
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.metrics import Mean, Sum
from fedjax_core.sites.audit import show
from fedjax_core.sites.coordinator.collect import Paused
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.policy import Caps, Evaluation, Policy
from fedjax_core.sites.policy import answered as module
from fedjax_core.sites.policy.answered import UNTRAINED, Answered, Question
from fedjax_core.sites.policy.privacy_ledger import Ledger
from fedjax_core.sites.protocol.request import Requests, RunContext, addresses
from fedjax_core.sites.site.endpoint import Site
from fedjax_core.sites.site.time_limit import StepLog
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.study import Study
from fedjax_core.sites.wire.envelope import decode, header_of
from fedjax_core.sites.wire.identity import Roster
from fedjax_core.work import TRAIN
from tests.sites.faulty import failed
from tests.sites.federations import COORDINATOR, NAMES, anew, federation, saying, site_files
from tests.zoo import task

SENT, ANY = Policy("charite"), Policy("charite", evaluation=Evaluation("any"))


def train(round, model, exchange=0, run="run", **more):
    return Question(
        "train", run, round, exchange, digest=f"d{model}", model="" if exchange else model, **more
    )


def evaluate(round, model, run="run"):
    return Question("evaluate", run, round, 0, digest=model, model=model)


def score(model):
    return Question("score", "run", 0, 0, digest=model, model=model)


def asked(answered, *questions, policy=SENT):
    """The code of each question's objection, "" where it is answered, which it then is."""
    found = []
    for question in questions:
        objection = answered.objection(question, policy)
        found.append("" if objection is None else objection[0])
        if objection is None:
            answered.add(question)
    return found


@pytest.fixture(params=["memory", "folder"])
def answered(request, tmp_path):
    return Answered(None if request.param == "memory" else tmp_path)


def test_a_run_that_evaluates_each_round_goes_on_as_long_as_it_likes(answered):
    for round in range(200):
        assert asked(
            answered,
            evaluate(round, f"{round}"),
            train(round, f"{round}"),
            policy=dataclasses.replace(SENT, evaluation=MANY),
        ) == ["", ""]


MANY = Evaluation("sent", per_day=10_000)


def test_a_round_has_one_model_and_so_has_each_of_its_exchanges(answered):
    assert asked(
        answered, train(0, "a"), train(0, "b"), train(0, "a"), train(0, "c", 1), train(0, "e", 1)
    ) == [
        "",
        "another-model",
        "",
        "",
        "another-model",
    ]
    assert asked(answered, evaluate(1, "b"), evaluate(1, "c"), train(1, "c"), train(1, "b")) == [
        "",
        "another-model",
        "another-model",
        "",
    ]
    assert asked(answered, train(0, "a", run="other"), train(0, "b", run="other")) == ["", "another-model"]
    assert asked(answered, train(1, "c"), evaluate(1, "f"), policy=ANY) == ["", ""]


def test_a_coordinator_that_fell_back_asks_with_the_same_bits_and_goes_on_otherwise(answered):
    first = [train(0, "a"), train(1, "b"), evaluate(2, "c"), train(2, "c"), train(3, "d"), evaluate(4, "e")]
    assert asked(answered, *first) == [""] * 6
    assert asked(answered, train(3, "other")) == ["another-model"]
    # a site was absent in round 1
    again = [
        train(1, "b"),
        evaluate(2, "C"),
        train(2, "C"),
        train(3, "D"),
        evaluate(4, "E"),
        train(4, "E"),
    ]
    assert asked(answered, *again) == [""] * 6
    assert asked(answered, train(2, "c")) == ["another-model"]  # the branch that was left
    # a process that knows only its newest checkpoint, of a round in which this site was not
    answered.begins_anew("run")
    assert asked(answered, train(3, "x"), evaluate(4, "y"), train(3, "z")) == ["", "", "another-model"]


def test_evaluated_is_what_was_trained_or_is_newer_and_not_often_without_training(answered):
    assert asked(answered, score("a"), train(0, "a"), score("a"), score("b")) == [
        "unsent-model",
        "",
        "",
        "unsent-model",
    ]
    assert asked(
        answered, train(5, "f"), evaluate(3, "odd"), evaluate(3, "a"), evaluate(9, "new"), score("new")
    ) == [
        "",
        "another-model",
        "",
        "",
        "",
    ]
    later = [evaluate(10 + i, f"later {i}") for i in range(UNTRAINED)]
    assert asked(answered, *later)[-4:] == ["", "", "untrained", "untrained"]  # two were evaluated above
    assert asked(
        answered, evaluate(0, "elsewhere", run="another"), later[0], train(60, "g"), evaluate(61, "h")
    ) == [
        "untrained",
        "",
        "",
        "",
    ]


def test_a_model_that_it_declined_to_train_is_none_of_training(answered):
    """With no time for a step, say: else any model could be sent so, and then be asked about."""
    for i in range(UNTRAINED):
        assert asked(answered, evaluate(i, f"{i}")) == [""]
    answered.add(train(UNTRAINED, "a"), steps=0)
    assert asked(answered, score("a"), evaluate(UNTRAINED, "a"), evaluate(99, "b")) == [
        "unsent-model",
        "another-model",
        "untrained",
    ]
    assert asked(answered, train(UNTRAINED, "a"), score("a"), evaluate(99, "b")) == ["", "", ""]


@pytest.mark.parametrize("policy", [SENT, ANY], ids=["sent", "any"])
def test_there_is_an_end_to_answers_but_what_was_told_is_told_again(answered, policy, monkeypatch):
    policy = dataclasses.replace(
        policy,
        evaluation=dataclasses.replace(policy.evaluation, per_day=2),
        caps=Caps(updates_per_day=3, updates=4),
    )
    updates = [train(i, f"{i}") for i in range(5)]
    assert asked(answered, *updates, policy=policy) == ["", "", "", "updates", "updates"]
    others = [
        evaluate(9, "a"),
        Question("measure", "run", 0, 0, "", data="f00d"),
        evaluate(10, "b"),
        Question("describe", "run", 0, 0, "", data="f00d"),
    ]
    assert asked(answered, *others, policy=policy) == ["", "", "evaluations", "evaluations"]
    assert asked(answered, updates[2], others[0], others[1], policy=policy) == ["", "", ""]
    monkeypatch.setattr(module, "_today", lambda: "tomorrow")
    assert asked(answered, updates[3], updates[4], *others, policy=policy) == ["", "updates", "", "", "", ""]
    objection = answered.objection(updates[4], policy)
    assert objection == ("updates", "gives no more than 4 updates in all, which it has (caps.updates)")


def test_other_data_are_another_answer(answered):
    assert asked(answered, train(0, "a", data="f00d"), train(0, "a", data="beef")) == ["", ""]
    limited = dataclasses.replace(SENT, caps=Caps(updates=2))
    assert asked(answered, train(0, "a", data="beef"), train(0, "a", data="f00d"), policy=limited) == [
        "",
        "updates",
    ]


def test_it_outlives_the_process_in_bounded_space(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LAST", 10)
    monkeypatch.setattr(module, "_RUNS", 5)
    answered, path = Answered(tmp_path), tmp_path / "answered.jsonl"
    for i in range(47):
        assert asked(answered, train(i, f"{i}", run=f"run-{i % 9}")) == [""]
        answered.begins_anew(f"run-{i % 2}")
    for _ in range(100):
        asked(answered, train(46, "46", run="run-1"))  # the same again adds nothing
    assert len(path.read_bytes().splitlines()) <= 20 and path.stat().st_mode & 0o777 == 0o600
    state = {name: getattr(answered, f"_{name}") for name in module._STATE}
    with open(path, "ab") as file:
        file.write(b'["train", "run')  # a crash
    again = Answered(tmp_path)
    assert (
        {name: getattr(again, f"_{name}") for name in module._STATE} == state
        and state["updates"] == 47
        and len(state["known"]) == 10
    )
    assert asked(again, train(46, "b", run="run-1"), train(47, "b", run="run-1")) == ["another-model", ""]
    assert asked(Answered(tmp_path), train(47, "c", run="run-1")) == ["another-model"]
    for text in ("{}\n", "[]\n", "[1]\n", "nothing\n", '["train", 3]\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"answered\.jsonl, .* is damaged: restore it from its backup"):
            Answered(tmp_path)


POLICY = """site = "charite"
[tasks]
mode = "first-use"
[minimum]
examples = 20
per_class = 5
[leaving]
fields = ["weight", "examples", "data", "loss", "accuracy", "steps_done", "examples_seen"]
"""


def records(count=40, positive=20):
    x = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    return {"x": x, "y": (np.arange(count) < positive).astype(np.int32)}


@cache
def averaged(algorithm=fc.algorithms.fedavg, **pieces):
    """(the round of an algorithm with these pieces, the state that it begins with)."""
    composed = fc.compose(
        algorithm(fc.models.logistic(features=2, classes=1), local=optax.sgd(0.1)), **pieces
    )
    return composed, jax.jit(partial(composed.init, population=1))(jax.random.key(0))


class Hospital:
    """A site with a policy of its own, and a coordinator that writes whatever request it likes."""

    def __init__(self, folder, policy=POLICY, data=None, algorithm=fc.algorithms.fedavg, **study):
        (folder / "policy.toml").write_text(policy)
        self.policy = folder / "policy.toml"
        if "delta" in policy:
            Ledger.begin(folder / "state")
        composed, self.state = averaged(algorithm, **study.pop("compose", {}))
        self.study = Study(composed, **{"batch_size": 4, "epochs": 1, **study})
        about = SiteFile(
            name="charite",
            data=records() if data is None else data,
            folder=folder / "state",
            policy=self.policy,
            labels="y",
        )
        self.site = Site(about, self.study, COORDINATOR.public).__enter__()
        self.requests = Requests(
            "run", self.study.hash, addresses(["charite"]), COORDINATOR, lambda *about: None
        )
        self.requests.first = jax.tree.map(lambda x: np.asarray(x[0]), self.state.clients)

    def ask(self, raw):
        return decode(
            self.site.handle(raw), Roster({"charite": self.site.context.key.public}), recipient="coordinator"
        )

    def training(self, params, number=0, uplink=None, **fields):
        context = RunContext(self.state, np.zeros(1, np.int32))
        body = {"message": params, "uplink": self.state.uplink[0] if uplink is None else uplink}
        return self.requests.write(
            "train", number, to=["charite"], context=context, draws=True, body=body, fields=fields
        )

    def train(self, params, number=0, **fields):
        return self.ask(self.training(params, number, **fields)).header

    def evaluate(self, params, number=0, **fields):
        context = RunContext(self.state, np.zeros(1, np.int32))
        return self.ask(
            self.requests.write(
                "evaluate", number, to=["charite"], context=context, body={"params": params}, fields=fields
            )
        ).header

    def score(self, params, **fields):
        return self.ask(
            self.requests.write("score", 0, to=["charite"], body={"params": params}, fields=fields)
        ).header

    def refused(self):
        return [one.about for one in show(self.site.context.folder / "audit", what="refused")]


@pytest.fixture
def hospital():
    """Makes one, which is closed with the test."""
    made = []

    def make(*about, **settings):
        made.append(Hospital(*about, **settings))
        return made[-1]

    yield make
    for one in made:
        one.site.__exit__()


def model(w=0.0):
    return {"w": np.full((2, 1), w, np.float32), "b": np.zeros(1, np.float32)}


def code(header):
    """Between brackets in a refusal, else its code; the kind of another reply."""
    if header.kind != "refusal":
        return header.kind
    reason = header.fields["reason"]
    return reason.rpartition("[")[2].rstrip("]") if reason.endswith("]") else header.fields["code"]


def test_a_site_scores_no_model_that_it_was_not_sent_and_no_request_chooses_its_batches(hospital, tmp_path):
    there = hospital(tmp_path)
    assert code(there.score(model(3.0))) == "unsent-model"
    assert [code(there.train(model(1.0))), code(there.train(model(2.0)))] == ["update", "another-model"]
    assert [
        code(there.evaluate(model(2.0))),
        code(there.evaluate(model(1.0))),
        code(there.score(model(2.0))),
    ] == [
        "another-model",
        "metrics",
        "unsent-model",
    ]
    told = [there.score(model(1.0), batch=size).fields for size in (1, 4, 40)]
    assert told[0] == told[1] == told[2] and "loss" in told[0]
    there.site = anew(there.site)
    assert [code(there.train(model(2.0))), code(there.score(model(2.0))), code(there.score(model(1.0)))] == [
        "another-model",
        "unsent-model",
        "scores",
    ]
    assert code(there.train(model(2.0), 1)) == "update"


def test_what_else_a_request_has_is_of_the_model_too(hospital, tmp_path):
    """The state of the uplink, and the key of the draws: another answer, from which the first can be
    subtracted."""
    there = hospital(tmp_path)
    assert code(there.train(model())) == "update"
    there.state = there.state._replace(key=jax.random.key(9))
    assert code(there.train(model())) == "another-model"


def test_a_model_is_trained_to_one_step_whatever_time_it_is_given(hospital, tmp_path):
    """40 examples in batches of 4: after 8 steps, and after 9, which tell of four people by their
    difference."""
    there = hospital(tmp_path, POLICY.replace("examples = 20", "examples = 4"))
    budget = there.site.context.budget
    budget.clock = lambda: float(budget.steps)
    first = there.train(model(), train_seconds=8.0)
    there.site.context.done = StepLog(None)  # which forgets all but the last rounds
    again = [there.train(model(), **more) for more in ({"train_seconds": 9.0}, {"train_seconds": 8.0}, {})]
    assert [one.digest for one in again] == [first.digest] * 3 and first.fields["examples_seen"] == 32
    whole = [there.train(model(), 1, **more) for more in ({}, {"train_seconds": 6.0})]
    assert whole[0].digest == whole[1].digest and whole[1].fields["examples_seen"] == 40
    assert there.train(model(), 2, train_seconds=6.0).fields["examples_seen"] == 24


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (4, [4, 8, 12, 16, 20, 24, 28, 32, 36, 40]),
        (10, [None, None, 12, 24, 24, 24, 40, 40, 40, 40]),  # 36 are no stop, as 4 are left after it
        (25, [None] * 6 + [40] * 4),
        (41, [None] * 10),
    ],
)
def test_between_two_steps_that_a_model_may_be_trained_to_there_are_as_many_examples_as_the_minimum(
    hospital, tmp_path, least, expected
):
    """By runs of other names, or models that are nearly the same, the same model is trained for as long as
    each of these times."""
    there = hospital(tmp_path, POLICY.replace("examples = 20", f"examples = {min(least, 40)}"))
    assert [there.site.context.data.stop(0, TRAIN, done, least) * 4 for done in range(1, 11)] == [
        4 * (i + 1) if one is None else one for i, one in enumerate(expected)
    ]
    if least == 10:
        budget = there.site.context.budget
        budget.clock = lambda: float(budget.steps)
        found = []
        for seconds in (2.0, 3.0, 4.0, 6.0, 7.0):
            there.requests.run = f"run-{seconds:g}"
            found.append(there.train(model(), train_seconds=seconds).fields.get("examples_seen"))
        assert found == [None, 12, 24, 24, 40]


@pytest.mark.parametrize(
    ("positive", "seconds", "said"),
    [
        (20, 3.0, "fewer than the 20 examples"),
        (6, 5.0, "fewer than the 5 examples of each class"),
        (40, None, "fewer than the 5 examples of each class"),  # the other class is absent
    ],
)
def test_minimums_are_of_what_a_report_is_of(hospital, tmp_path, positive, seconds, said):
    there = hospital(tmp_path, data=records(positive=positive))
    budget = there.site.context.budget
    budget.clock = lambda: float(budget.steps)
    header = there.train(model(), **({} if seconds is None else {"train_seconds": seconds}))
    assert (header.kind, header.fields["code"]) == ("refusal", "declined") and "fewer" not in header.fields[
        "reason"
    ]
    assert said in there.refused()[0]["reason"] and said in (tmp_path / "state" / "errors.log").read_text()
    assert not [
        one for one in show(tmp_path / "state" / "audit", what="left") if one.about["kind"] == "update"
    ]


def test_a_study_of_few_steps_is_of_few_examples(hospital, tmp_path):
    there = hospital(tmp_path, epochs=None, steps=3)  # of 4 each
    assert (
        code(there.train(model())) == "declined"
        and "fewer than the 20 examples" in there.refused()[0]["reason"]
    )
    (tmp_path / "five").mkdir()
    assert code(hospital(tmp_path / "five", epochs=None, steps=5).train(model())) == "update"


def counting(task, local):
    """FedAvg that tells a plain sum over its examples, which has no weight, and a mean over those of one
    class."""
    algorithm = fc.algorithms.fedavg(task, local)
    (exchange,) = algorithm.exchanges

    def step(message, carry, batch, key):
        carry, seen = exchange.client.step(message, carry, batch, key)
        positive = jnp.where(batch["y"] == 1, batch.mask, 0)
        return carry, seen | {
            "positives": Sum(jnp.sum(positive)),
            "age": Mean(jnp.sum(batch["x"][:, 0] * positive), jnp.sum(positive)),
        }

    return algorithm._replace(exchanges=(exchange._replace(client=exchange.client._replace(step=step)),))


@pytest.mark.parametrize(
    ("cell", "told"), [(20, {"loss", "positives", "age"}), (40, {"loss", "positives"}), (41, set())]
)
def test_a_sum_in_a_report_is_of_its_examples_however_often_each_was_trained_on(
    hospital, tmp_path, cell, told
):
    policy = POLICY.replace("examples = 20", f"cell = {cell}").replace('"loss"', '"loss", "positives", "age"')
    header = hospital(tmp_path, policy, algorithm=counting, epochs=2).train(model())
    assert header.kind == "update" and {"loss", "positives", "age"} & set(header.fields) == told


# a sum over steps has some of them twice
@pytest.mark.parametrize("often", [{}, {"epochs": 2}, {"epochs": None, "steps": 13}])
def test_sums_of_few_examples_do_not_leave(hospital, tmp_path, often):
    there = hospital(tmp_path, POLICY.replace("examples = 20", "cell = 41"), **often)
    header = there.train(model())
    assert header.kind == "update" and "loss" not in header.fields
    assert code(there.evaluate(model())) == "declined" and "minimum.cell" in there.refused()[0]["reason"]


ACCOUNT = """max_norm = 1e3
clip = 1.0
noise = 4.0
by = "study"
delta = 1e-5
[evaluation]
models = "any"
"""


@pytest.mark.parametrize("account", [False, True], ids=["no account", "an account"])
def test_that_nothing_left_says_no_more_and_costs_as_much_as_a_report(hospital, tmp_path, account):
    """A model that overflows on somebody's record, one that is finite and too large, and one that is fine."""
    policy = POLICY.replace(', "loss", "accuracy"', "") if account else POLICY
    policy += ACCOUNT if account else "max_norm = 1e3\n"
    there = hospital(tmp_path, policy, compose={"uplink": saying(1.0, 4.0)}, algorithm=partial(scaled, 1.0))
    huge = np.float32(3e38)
    found = [there.train(one, number) for number, one in enumerate([model(huge), model(1e6), model(0.0)])]
    assert [one.kind for one in found] == ["refusal", "refusal", "update"]
    assert found[0].fields == found[1].fields and found[0].fields["code"] == "declined"
    assert [one["code"] for one in there.refused()] == [
        "not-finite",
        "declined",
    ] and "max_norm" in there.refused()[1]["reason"]
    told = [one["told"] for one in there.refused()] if account else []
    assert told == ([0.25, 0.5] if account else [])
    if account:
        assert json.loads((tmp_path / "state" / "told.json").read_text())["told"] == 0.75
        there.site = anew(there.site)
        again = there.train(model(huge), 0)  # the same again tells nothing new, in another process too
        assert again.fields == found[0].fields and there.refused()[-1]["told"] == 0.75
        # declined as the other was, which tells of this one too
        another = [there.train(model(-huge), 0) for _ in range(2)]
        assert [one.fields for one in another] == [found[0].fields] * 2 and there.refused()[-1]["told"] == 1.0
        assert (
            there.evaluate(model(), 3)
            .fields["reason"]
            .startswith("charite keeps an account of an epsilon (leaving.delta)")
        )


def scaled(factor, task, local):
    """FedAvg that reports the model itself: what was broadcast comes back, however large."""
    plain = fc.algorithms.fedavg(task, local)
    (one,) = plain.exchanges

    def finish(message, carry, seen):
        report = one.client.finish(message, carry, seen)
        return report._replace(update=jax.tree.map(lambda x: x * factor * x, message))

    return plain._replace(exchanges=(one._replace(client=one.client._replace(finish=finish)),))


def test_an_error_in_work_on_the_data_is_no_answer_either(hospital, tmp_path, monkeypatch):
    there = hospital(tmp_path)
    said = []
    for error in (ValueError("of one patient"), FloatingPointError("of another")):
        with monkeypatch.context() as patch:
            patch.setattr(
                "fedjax_core.sites.site.client_update.client_update",
                lambda *a, error=error, **k: (_ for _ in ()).throw(error),
            )
            said.append(there.train(model()).fields)
    assert said[0] == said[1] and said[0]["code"] == "declined"
    assert [one["reason"].split()[3].rstrip(";") for one in there.refused()] == [
        "ValueError",
        "FloatingPointError",
    ]


def test_who_has_withdrawn_does_not_answer_once_more(hospital, tmp_path):
    there = hospital(tmp_path)
    raw, whole = there.training(model()), there.training(model(1.0), 1, part_bytes=64)
    assert code(there.ask(raw).header) == code(there.ask(raw).header) == "update"
    parts = there.ask(whole)
    assert parts.header.kind == "parts"
    asked = decode(whole, Roster({"coordinator": COORDINATOR.public}), recipient="sites").header
    said = there.policy.read_text()
    for change, expected in (("paused = true\n", "declined"), ("withdrawn = true\n", "withdrawn")):
        there.policy.write_text(change + said)
        for repeat in (whole, there.requests.part(asked, parts.header.fields["of"], 0)):
            header = there.ask(repeat).header
            assert (header.kind, header.fields["code"]) == ("refusal", expected)
    there.policy.write_text(said)
    assert there.ask(whole).header.kind == "parts"
    left = [
        one.about["digest"]
        for one in show(tmp_path / "state" / "audit", what="left")
        if one.about["kind"] == "update"
    ]
    assert len(left) == 2
    there.policy.write_text("paused = true\n" + said)
    there.site = anew(there.site)
    assert code(there.ask(raw).header) == "paused"
    there.policy.write_text(said)
    there.site = anew(there.site)
    assert there.ask(raw).header.digest == left[0]  # of another process: the same numbers


def test_a_site_that_had_too_little_time_may_be_given_more(hospital, tmp_path):
    there = hospital(tmp_path)
    budget = there.site.context.budget
    budget.clock = lambda: float(budget.steps)
    found = [there.train(model(), train_seconds=seconds) for seconds in (3.0, 5.0, 9.0)]
    assert [code(one) for one in found] == ["declined", "update", "update"]
    assert [one.fields["examples_seen"] for one in found[1:]] == [20, 20]


def runs(algorithm, folder, **settings):
    """A federation of sites whose own policies let the usual fields leave, and a report's group where there
    are groups, and no more."""
    files = []
    for one in site_files(folder=folder):
        path = folder / f"{one.name}.toml"
        fields = '"weight", "examples", "data", "loss", "accuracy", "slot"'
        path.write_text(f'site = "{one.name}"\n[tasks]\nmode = "first-use"\n[leaving]\nfields = [{fields}]\n')
        files.append(dataclasses.replace(one, policy=path))
    return federation(fc.compose(algorithm), files=files, folder=folder, **settings)


def declined(folder):
    return [one.about["reason"] for one in show(folder / "coordinator" / "audit", what="declined")]


ALGORITHMS = {
    "fedavg": lambda: fc.algorithms.fedavg(task(), optax.sgd(0.1)),
    "scaffold": lambda: fc.algorithms.scaffold(task(), 0.1, 4),
    "mime, two exchanges": lambda: fc.algorithms.mime(task(), optax.sgd(0.1)),
    "ifca, personal models": lambda: fc.algorithms.ifca(task(), 2, optax.sgd(0.1)),
}


@pytest.mark.parametrize(
    "name",
    ["fedavg", *(pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS if name != "fedavg")],
)
def test_runs_that_evaluate_and_are_resumed_are_answered_all_the_way(name, tmp_path):
    """Each round, some of the sites, and a model that is best; then from a checkpoint of two rounds before,
    with others of them."""
    there = {
        "run_dir": tmp_path / "run",
        "progress": False,
        "key": jax.random.key(1),
        "evaluate_every": 1,
        "checkpoint_every": 2,
        "patience": 50,
    }
    chosen = lambda round: [[0, 1, 2], [1, 2, 3], [0, 2, 3]][round % 3]  # noqa: E731
    with runs(ALGORITHMS[name](), tmp_path) as (fed, _, _):
        fc.fit(fed, 5, cohorts=chosen, **there)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / max(os.listdir(tmp_path / "run" / "checkpoints")))
    with runs(ALGORITHMS[name](), tmp_path) as (fed, _, _):
        state = fc.fit(fed, 7, cohorts=lambda round: [0, 1, 3], override=True, **there).state
        assert np.isfinite(fed.evaluate(state).pooled["loss"])
    assert declined(tmp_path) == []


@pytest.mark.slow  # default: above
def test_a_run_without_rounds_is_answered_all_the_way(tmp_path):
    with runs(ALGORITHMS["fedavg"](), tmp_path, buffer=fc.Buffer(size=2)) as (fed, _, _):
        state = fc.fit(
            fed,
            5,
            cohorts=lambda round: [0, 1, 2, 3],
            key=jax.random.key(1),
            evaluate_every=1,
            progress=False,
        ).state
        fed.evaluate(state)
    assert declined(tmp_path) == []


def test_a_round_that_too_few_reported_in_is_run_again(tmp_path):
    """With another set of sites in its first exchange, so that its second has another model."""
    away = {"train": None}

    def fault(send, site, request, n):
        asked = header_of(request)
        return (
            failed()
            if asked.kind == "train" and (site, asked.exchange) in (away["train"] or ())
            else send(site, request)
        )

    with runs(ALGORITHMS["mime, two exchanges"](), tmp_path, fault=fault, rules=Rules(quorum=3)) as (
        fed,
        _,
        _,
    ):
        state = fed.init(jax.random.key(1))
        away["train"] = {(NAMES[0], 1), (NAMES[1], 1)}
        with pytest.raises(Paused, match="exchange 1"):
            fed.run(state, [0, 1, 2, 3])
        away["train"] = {(NAMES[3], 0)}
        state, seen = fed.run(state, [0, 1, 2, 3])
        assert float(seen["clients"]) == 3
    assert declined(tmp_path) == []


@pytest.mark.parametrize(("factor", "kind"), [(1.0, "update"), (0.5, "update"), (0.51, "refusal")])
def test_a_weight_that_is_no_count_does_not_leave_beside_an_account(hospital, tmp_path, factor, kind):
    """Of 40 examples: one made of losses, say, would tell of them without noise."""
    policy = POLICY.replace(', "loss", "accuracy"', "") + ACCOUNT
    there = hospital(
        tmp_path, policy, compose={"uplink": saying(1.0, 4.0)}, algorithm=partial(weighted, factor)
    )
    assert there.train(model()).kind == kind
    assert kind == "update" or "[weight]" in there.refused()[0]["reason"]


def weighted(factor, task, local):
    """FedAvg in which a report counts for this share of its examples."""
    return fc.algorithms.fedavg(task, local, weighting=lambda seen: factor * seen.examples)
