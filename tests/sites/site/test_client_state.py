"""What a site keeps is there as long as a checkpoint may ask for it, and no longer; and never more than the
site gives."""

import jax
import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.sites.coordinator.rules import Rules
from fedjax_core.sites.policy import Policy
from fedjax_core.sites.protocol.request import may_come_again
from fedjax_core.sites.site.client_state import ClientStateStore, LostState, NoRoom
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.wire.envelope import COORDINATOR, SITES, Header
from tests.contracts import assert_equal
from tests.sites.faulty import failed
from tests.sites.federations import BATCH, federation, site_files

LIKE = {"c": np.zeros(250_000, np.float32)}  # a megabyte


def filled(folder, *versions):
    keep = ClientStateStore(folder)
    for version in versions:
        keep.write(version, {"c": np.full_like(LIKE["c"], version)})
    return keep


def there(keep):
    """Those that can be read."""
    found = []
    for version in range(20):
        try:
            assert keep.read(version, LIKE)["c"][0] == version
            found.append(version)
        except LostState:
            pass
    return found


def test_a_version_is_whole_or_not_there(tmp_path):
    keep = filled(tmp_path, 5, 6)
    with pytest.raises(LostState, match=r"version 7 .* is not there"):
        keep.read(7, LIKE)
    path = tmp_path / "kept-000000000006"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(LostState, match="damaged"):
        keep.read(6, LIKE)
    path.write_bytes((tmp_path / "kept-000000000005").read_bytes())
    with pytest.raises(LostState, match=r"version 6 .* is damaged"):  # another version under its name
        keep.read(6, LIKE)


@pytest.mark.parametrize("where", ["folder", "memory", "another process"])
def test_what_is_needed_stays_and_of_the_rest_the_last_written(where, tmp_path):
    # 9 was written before a fall back
    keep = filled(None if where == "memory" else tmp_path / "run", 1, 2, 9, 3, 4)
    keep = ClientStateStore(tmp_path / "run") if where == "another process" else keep
    keep.make_room(LIKE, 5, needed={1, 9, 17}, recent=1)
    assert there(keep) == [1, 4, 9]
    keep.make_room(LIKE, 5, needed={9}, recent=0)
    assert there(keep) == [9]


def test_no_more_is_kept_than_the_site_gives_and_nothing_that_is_needed_goes(tmp_path):
    filled(tmp_path / "former", 1)
    keep = filled(tmp_path / "run", 1, 2, 3, 4)
    # one of another run, the one needed, the new one, and one more
    keep.make_room(LIKE, 5, needed={1}, recent=64, most_gb=0.0041)
    assert there(keep) == [1, 4]
    with pytest.raises(
        NoRoom,
        match=r"needs 3 versions of 0.001 GB.*0.001 GB are of other runs.*gives 0.0031 GB \(caps.kept_gb\)",
    ):
        keep.make_room(LIKE, 5, needed={1, 4}, recent=0, most_gb=0.0031)
    assert there(keep) == [1, 4]


@pytest.fixture(scope="module")
def stateful():
    return fc.compose(
        fc.algorithms.scaffold(fc.models.linear(features=3), 0.1, 4),
        uplink=fc.uplink.feedback(fc.uplink.quantize(4)),
    )


class Killed(Exception):
    pass


def run(composed, folder, rounds, every, die=None, **settings):
    """(the state after these rounds, how many versions each site had at most) of a run that is killed before
    round `die`."""
    most = 0

    class Federation(fc.Federation):
        def run(self, state, cohort, **more):
            nonlocal most
            if int(state.round) == die:
                raise Killed
            found = super().run(state, cohort, **more)
            most = max(most, len(list((folder / "charite").rglob("kept-0*"))))
            return found

    files = site_files("numbers", folder)
    with Federation(
        composed, files, batch_size=BATCH, steps=1, transport="in-process", folder=folder / "coordinator"
    ) as fed:
        history = fc.fit(
            fed,
            rounds,
            fc.cohorts.uniform(4, 3),
            run_dir=folder / "run",
            checkpoint_every=every,
            keep=2,
            progress=False,
            **settings,
        )
    return history.state, most


@pytest.mark.parametrize(
    ("rounds", "every", "die", "damage"),
    [
        pytest.param(10, 20, 9, False, id="never since the first checkpoint"),
        pytest.param(12, 4, 11, True, id="the newest checkpoint damaged"),
        pytest.param(80, 100, 75, False, id="more than 64 rounds", marks=pytest.mark.slow),
    ],
)
def test_a_run_resumes_however_rare_its_checkpoints_are(stateful, tmp_path, rounds, every, die, damage):
    whole, most = run(stateful, tmp_path / "whole", rounds, every)
    # of two checkpoints and one that is being written, the round's first, and the new one
    assert most <= 2 + 3
    with pytest.raises(Killed):
        run(stateful, tmp_path / "killed", rounds, every, die)
    if damage:
        newest = max((tmp_path / "killed" / "run" / "checkpoints").glob("0*"))
        (newest / "checkpoint.json").write_text("{")
    assert_equal(run(stateful, tmp_path / "killed", rounds, every)[0], whole)


def test_a_site_that_is_late_for_long_keeps_little_and_what_counted(stateful, tmp_path):
    """Whose reports are lost in every round but the first."""

    def lose(send, site, request, n):
        found = send(site, request)
        found.result()  # it has done its work
        return found if site != "mayo" or n < 2 else failed()

    settings = {
        "files": site_files("numbers", tmp_path),
        "folder": tmp_path,
        "rules": Rules(quorum=3, attempts=1),
    }
    with federation(stateful, "numbers", fault=lose, **settings) as (fed, _, transport):
        history = fc.fit(
            fed,
            8,
            fc.cohorts.everyone(4),
            run_dir=tmp_path / "run",
            checkpoint_every=2,
            keep=2,
            progress=False,
        )
        assert np.asarray(history.state.clients.version).tolist() == [8, 1, 8, 8]
        assert len(list((tmp_path / "mayo" / "kept").rglob("kept-0*"))) <= 3
        transport.fault = lambda send, site, request, n: send(site, request)
        state, _ = fed.run(history.state, range(4))
    assert np.asarray(state.clients.version).tolist() == [9] * 4


def test_a_site_declines_rather_than_forget_what_the_run_needs(stateful, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text('site = "charite"\n[tasks]\nmode = "first-use"\n[caps]\nkept_gb = 5e-8')
    data = {one.name: one.data for one in site_files("numbers")}
    files = [
        SiteFile(name=name, data=x, policy=policy if name == "charite" else None) for name, x in data.items()
    ]
    with fc.Federation(
        stateful, files, batch_size=BATCH, steps=1, transport="in-process", folder=tmp_path / "coordinator"
    ) as fed:
        _, seen = fed.run(fed.init(jax.random.key(0)), range(4))
        assert float(seen["missing"]) == 1
        assert "caps.kept_gb" in (tmp_path / "coordinator" / "audit" / "audit-000001.jsonl").read_text()


def test_what_is_kept_has_a_bound_where_the_policy_sets_none():
    assert Policy("charite").caps.kept_gb == 20


def test_rounds_without_fit_may_go_back_by_many(stateful):
    """Nobody says from which states they go on."""
    with federation(stateful, "numbers") as (fed, sites, _):
        states = [fed.init(jax.random.key(0))]
        for _ in range(4):
            states.append(fed.run(states[-1], range(4))[0])
        again, _ = fed.run(states[1], range(4))
        assert_equal(again, states[2])
        assert sites[0].context.keep("run").versions == [0, 1, 3, 4, 2]


def asked(round, **fields):
    return Header(
        kind="train", run="run", round=round, exchange=0, sender=COORDINATOR, recipient=SITES, sequence=1, created_unix_ms=0, config="",
        fields=fields,
    )  # fmt: skip


def test_answers_are_known_as_long_as_they_may_be_asked_again():
    known = {f"{run}/{round}/0": round for round in range(300) for run in ("run", "former")}
    found = may_come_again(known, asked(299, oldest=100))
    assert [round for where, round in found.items() if where.startswith("run/")][-200:] == list(
        range(100, 300)
    )
    assert len(found) == 200 + 64 and list(found) == [where for where in known if where in found]
    assert list(may_come_again(known, asked(299))) == list(known)[-64:]
