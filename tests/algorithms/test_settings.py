"""An algorithm says what it is called and what it was made with, in errors, logs and configurations."""

import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.describe import describe
from fedjax_core.run.config import difference

TASK = fc.models.linear(features=2)


def test_an_algorithm_says_its_name_and_what_it_was_made_with():
    algorithm = fc.algorithms.fedprox(TASK, 0.5, optax.sgd(0.1), weighting=fc.algorithms.uniform)
    assert algorithm.name == "fedprox" and dict(algorithm.settings) == {
        "task": TASK, "mu": 0.5, "local": algorithm.settings["local"], "weighting": fc.algorithms.uniform}  # fmt: skip
    assert repr(fc.compose(algorithm)) == "Round(fedprox, uplink chain(), aggregator mean)"
    assert (
        repr(algorithm.settings)
        == "Settings(task=Task, mu=0.5, local=GradientTransformationExtraArgs, weighting=function)"
    )
    assert (
        repr(fc.compose(fc.algorithms.mime(TASK, optax.sgd(0.1))))
        == "Round(mime in 2 exchanges, uplink chain(), aggregator mean)"
    )
    by_round = fc.algorithms.by_round(lambda round: fc.algorithms.scaffold(TASK, 0.1, 3))
    assert by_round.name == "by_round(scaffold)"
    assert fc.algorithms.scaffold(TASK, lambda round: 0.1, 3).name == "scaffold"


def test_what_it_was_made_with_can_be_a_key_whatever_it_is():
    one, two = (fc.algorithms.fedper(TASK, optax.sgd(0.1), personal=["b"]).settings for _ in range(2))
    assert one == one != two and len({one, two}) == 2 and list(one["personal"]) == ["b"]


def test_a_changed_setting_is_told_by_its_name():
    one, two = (describe({"round": fc.compose(fc.algorithms.scaffold(TASK, lr, 3))}) for lr in (0.1, 0.2))
    assert difference(one, two)[0] == "round.algorithm.settings.lr: 0.1 -> 0.2"


def test_stages_and_aggregators_say_what_they_were_made_with():
    stages = fc.uplink.chain(fc.uplink.clip(2.0), fc.uplink.feedback(fc.uplink.quantize(bits=4)))
    clip, feedback = stages.settings["stages"]
    assert dict(clip.settings) == {"bound": 2.0} and dict(feedback.settings["inner"].settings) == {"bits": 4}
    assert (
        dict(fc.aggregators.trimmed_mean(0.2).settings) == {"fraction": 0.2}
        and dict(fc.aggregators.mean().settings) == {}
    )
    one, two = (describe({"round": fc.compose(fc.algorithms.fedavg(TASK, optax.sgd(0.1)), fc.uplink.chain(fc.uplink.clip(b)))})
                for b in (1.0, 2.0))  # fmt: skip
    assert difference(one, two)[0] == "round.uplink.settings.stages[0].settings.bound: 1.0 -> 2.0"


def test_an_error_says_which_algorithm():
    clients = fc.Clients.from_list([{"x": np.ones((1, 2), np.float32), "y": np.ones(1, np.float32)}] * 2)
    with pytest.raises(ValueError, match="clients of scaffold keep state"):
        fc.AsynchronousSimulator(
            fc.compose(fc.algorithms.scaffold(TASK, 0.1, 2)), clients, fc.Buffer(size=1), batch_size=1
        )
    with pytest.raises(ValueError, match="scaffold was made with population=3, and there are 2 clients"):
        fc.Simulator(fc.compose(fc.algorithms.scaffold(TASK, 0.1, 3)), clients, batch_size=1)
