"""What left a site can be read again there: in its ledger, and, of large tensors, in its folder."""

import dataclasses
import hashlib

import jax
import numpy as np
import pytest

from fedjax_core.sites.audit import show
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.wire.tensors import unpack
from tests.sites.federations import federation, site_files
from tests.zoo import round_of

COMPOSED = round_of("fedavg")


@pytest.mark.meets("164.308(a)(1)(ii)(D)", by="what left, as it was sent, to be read again")
def test_what_left_is_in_the_ledger_by_value_and_in_the_folder_as_it_was_sent(tmp_path):
    room = (0.0, 6e-7, 1e-3, 1e-7)  # GB: for none, one of these updates, all of them, less than one
    files = [
        dataclasses.replace(one, left_gb=gb)
        for one, gb in zip(site_files(folder=tmp_path), room, strict=True)
    ]
    with federation(COMPOSED, files=files, folder=tmp_path) as (fed, _, _):
        state = fed.init(jax.random.key(0))
        for _ in range(3):
            state, metrics = fed.run(state, range(4))
        evaluation = fed.evaluate(state)
    for i, about in enumerate(files):
        entries = [entry.about for entry in show(about.folder / "audit", what="left")]
        updates = [one for one in entries if one["kind"] == "update"]
        assert len(updates) == 3 and all(one["sent.examples"] == evaluation.sizes[i] for one in updates)
        assert {one["algorithm"] for one in updates} == {"fedavg"}
        assert entries[-1]["sent.loss"] == pytest.approx(evaluation.clients["loss"][i] * evaluation.sizes[i])
        kept = {path.stem: path for path in (about.folder / "left").glob("*")}
        assert [one.get("kept") for one in updates] == [(None, True, True, False)[i]] * 3
        assert set(kept) == {one["digest"] for one in (updates[:0], updates[-1:], updates, updates[:0])[i]}
        for one in updates:
            numbers = np.array(
                " ".join(one[name] for name in sorted(one) if name.startswith("numbers.")).split(), np.float32
            )
            assert len(numbers) == one["numbers"] == 31
            if one["digest"] in kept:
                raw = kept[one["digest"]].read_bytes()
                tensors = unpack(raw)
                assert hashlib.sha256(raw).hexdigest() == one["digest"]
                assert np.array_equal(
                    np.concatenate([tensors[name].ravel() for name in sorted(tensors)]), numbers
                )
    assert float(metrics["clients"]) == 4
    rounds = [entry.about["algorithm"] for entry in show(tmp_path / "coordinator" / "audit", what="round")]
    assert rounds == ["fedavg"] * 3


@pytest.mark.parametrize("odd", [-1.0, float("nan"), "1"])
def test_how_much_is_kept_is_a_number(odd):
    with pytest.raises(ValueError, match="it is how many GB of what left are kept"):
        SiteFile(name="charite", data={}, left_gb=odd)
