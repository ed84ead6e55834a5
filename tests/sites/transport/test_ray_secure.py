"""Secure aggregation between four site processes under Ray gives the bits of lanes, also where one is killed
within a round."""

import pytest

import fedjax_core as fc
from fedjax_core.sites.protocol.kinds import MASK
from fedjax_core.sites.wire.envelope import header_of
from tests.sites.actors import kill
from tests.sites.coordinator.test_secure import EVERYONE, SECURE, WITHOUT, assert_same, begun, params
from tests.sites.federations import BATCH, EPOCHS, NAMES, simulator, site_files


@pytest.mark.slow
def test_four_site_processes_end_bit_for_bit_where_lanes_end(tmp_path, monkeypatch):
    sim = simulator(SECURE)
    expected = begun(sim)
    with fc.Federation(
        SECURE, site_files(folder=tmp_path), batch_size=BATCH, epochs=EPOCHS, folder=tmp_path / "coordinator"
    ) as fed:
        state = begun(fed)
        for cohort in (EVERYONE, WITHOUT):
            state, _ = fed.run(state, cohort)
            expected, _ = sim.run(expected, list(cohort))
        assert_same(params(state), params(expected))
        send = fed._transport.send

        def killing(site, request):
            if header_of(request).kind == MASK and site == NAMES[1]:
                kill(site)
            return send(site, request)

        monkeypatch.setattr(fed._transport, "send", killing)
        state, seen = fed.run(state, EVERYONE)
        monkeypatch.undo()
        expected, _ = sim.run(expected, list(WITHOUT))
        assert float(seen["clients"].total) == 3 and set(fed.lacked(3)) == {NAMES[1]}
        state, _ = fed.run(state, EVERYONE)  # it is there again
        expected, _ = sim.run(expected, list(EVERYONE))
        assert_same(params(state), params(expected))
