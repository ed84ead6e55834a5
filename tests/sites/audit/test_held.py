"""Each end of a federation holds the head of the other's log, which came with its messages: what is cut off
at one end, the other knows."""

import jax
import pytest

from fedjax_core.sites.audit import AuditError, files, head_of, held_by, show, verify
from tests.sites.federations import COORDINATOR, NAMES, begin_anew, federation
from tests.zoo import round_of

COMPOSED = round_of("fedavg")


def cut(log, entries):
    """Cuts off the last entries, and the file that would tell it to whoever opens the log again."""
    path = files(log)[-1]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-entries]))
    (log / "heads.json").unlink()


def test_what_is_cut_off_at_one_end_the_other_end_knows(tmp_path, caplog):
    home, site = tmp_path / "coordinator" / "audit", tmp_path / "mayo" / "audit"
    with federation(COMPOSED, folder=tmp_path) as (fed, sites, transport):
        keys = {one.name: [one.context.key.public] for one in sites} | {"coordinator": [COORDINATOR.public]}

        def held(by, of):
            return held_by(tmp_path / by / "audit", keys[by], of)

        state, _ = fed.run(fed.init(jax.random.key(0)), range(4))
        state, _ = fed.run(state, range(4))
        for name in NAMES:
            log = tmp_path / name / "audit"
            assert held("coordinator", name)[-1] == head_of(log)  # with the message itself among its entries
            assert verify(log, keys[name], held={"coordinator": held("coordinator", name)}) == head_of(log)
            assert verify(home, keys["coordinator"], held={name: held(name, "coordinator")}) == head_of(home)
            *_, last = show(log, what="left")
            assert last.about["head.coordinator"] == str(held(name, "coordinator")[-1])
        sites[1].__exit__()
        cut(site, 1)
        begin_anew(sites, transport, 1)
        fed.run(state, range(4))  # which makes the log longer than it was
        assert (
            verify(site, keys["mayo"]).n > held("coordinator", "mayo")[-2].n
            and "mayo ends" not in caplog.text
        )
        with pytest.raises(
            AuditError,
            match="not the one that the head that coordinator holds names: the log was written anew",
        ):
            verify(site, keys["mayo"], held={"coordinator": held("coordinator", "mayo")})
        newest = held("coordinator", "mayo")[-1]
        sites[1].__exit__()
        cut(site, 4)
        begin_anew(sites, transport, 1)
        fed.evaluate(state)  # which is told at once
        sites[1].__exit__()
        assert held("coordinator", "mayo")[-1] == newest
    assert "the log of mayo ends with entry" in caplog.text
    (said,) = show(home, what="head went back")
    assert said.who == "mayo" and "entries were cut off, or it was written anew" in said.about["reason"]
    cut(home, 12)
    assert verify(home, keys["coordinator"]).n > 0  # by itself nothing can be told
    with pytest.raises(AuditError, match=r"but the head that oslo holds is entry .* entries were cut off"):
        verify(home, keys["coordinator"], held={"oslo": held("oslo", "coordinator")})


def test_a_head_tells_nothing_of_what_is_in_a_log(tmp_path):
    """The line that it is a digest of has a signature in it, which nobody but the log's owner can make."""
    with federation(COMPOSED, folder=tmp_path) as (_, sites, _):
        sites[0].context.log.record("charite", "left", about={"loss": 0.5})
        (line,) = [
            line for path in files(sites[0].context.log.folder) for line in path.read_bytes().splitlines()
        ][-1:]
        signature = line.rpartition(b'"signature":"')[2].partition(b'"')[0]
        assert len(signature) == 128 and signature != COORDINATOR.sign("audit", line).hex().encode()
