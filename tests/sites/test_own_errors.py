"""An error of the user's own algorithm at a site of their own process is shown with its traceback, and is on
no wire."""

import logging
import threading
import traceback

import jax
import numpy as np
import optax
import pytest

import fedjax_core as fc
from fedjax_core.sites.federation import Paused
from fedjax_core.sites.site_file import SiteFile
from tests.sites.federations import BATCH, site_files


def failing():
    """FedAvg that fails at work, which sites do in threads of their own."""
    algorithm = fc.algorithms.fedavg(fc.models.linear(features=3), optax.sgd(0.1))
    (exchange,) = algorithm.exchanges

    def finish(message, carry, seen):
        if threading.current_thread() is not threading.main_thread():
            raise KeyError("my_mistake")
        return exchange.client.finish(message, carry, seen)

    return fc.compose(
        algorithm._replace(exchanges=(exchange._replace(client=exchange.client._replace(finish=finish)),))
    )


@pytest.mark.parametrize("folder", [False, True])
def test_the_traceback_of_ones_own_code_is_shown(folder, tmp_path, caplog):
    files = site_files("numbers", tmp_path if folder else None)
    with fc.Federation(
        failing(), files, batch_size=BATCH, epochs=2, transport="in-process", folder=tmp_path / "coordinator"
    ) as fed:
        state = fed.init(jax.random.key(0))
        with caplog.at_level(logging.ERROR, "fedjax_core"), pytest.raises(Paused) as paused:
            fed.run(state, range(4))
    cause = paused.value.__cause__
    assert isinstance(cause, KeyError) and "my_mistake" in str(cause)
    assert "in finish" in "".join(traceback.format_exception(cause))
    assert ("my_mistake" in caplog.text) != folder  # else it is in errors.log
    assert "my_mistake" not in str(paused.value)
    assert "my_mistake" not in (tmp_path / "coordinator" / "audit" / "audit-000001.jsonl").read_text()


def test_a_central_test_set_of_a_personal_algorithm_is_refused_with_the_way_out():
    composed = fc.compose(fc.algorithms.ifca(fc.models.linear(features=3), 2, optax.sgd(0.1)))
    clients = fc.Clients.from_list([one.data for one in site_files("numbers")])
    sim = fc.Simulator(composed, clients, batch_size=BATCH, lanes=1)
    with pytest.raises(
        ValueError, match=r"evaluate=lambda sim, state: fc.evaluate\(task, state.params, central\).pooled"
    ):
        sim.evaluate(sim.init(jax.random.key(0)), fc.Clients.from_list([site_files("numbers")[0].data]))


def test_what_a_sites_own_data_raise_is_told_with_its_name():
    def data():
        raise FileNotFoundError("patients.csv")

    sites = [
        SiteFile(name="charite", data={"x": np.ones((3, 1)), "y": np.ones(3)}),
        SiteFile(name="oslo", data=data),
    ]
    algorithm = fc.algorithms.fedavg(fc.models.linear(1), optax.sgd(0.1))
    with pytest.raises(FileNotFoundError) as caught:
        fc.Federation(fc.compose(algorithm), sites, batch_size=2, epochs=1, transport="in-process")
    assert caught.value.__notes__ == ["It is the site oslo that could not start."]
