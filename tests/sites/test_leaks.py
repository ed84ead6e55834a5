"""Canaries: what is planted in a site's data, its file names and its errors is nowhere but at that site."""

import dataclasses
import logging
import os
import stat
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
import ray

import fedjax_core as fc
from fedjax_core.files import open_to_others
from fedjax_core.sites.federation import Paused
from fedjax_core.sites.protocol.kinds import KINDS
from fedjax_core.sites.site_file import SiteFile
from fedjax_core.sites.transport.ray_site import Handed, SiteActor
from fedjax_core.sites.wire.envelope import COORDINATOR, Header, encode, header_of
from tests.sites import federations
from tests.sites.federations import NAMES, federation, site_files

PATIENT, VALUE, NUMBER = "PATIENT-4711", 77_123.5, 408_172_637
SPELT = [
    PATIENT.encode(),
    *(np.array(VALUE, form).tobytes() for form in ("<f4", "<f8", ">f4", ">f8")), str(VALUE).encode(), f"{VALUE:.6e}".encode(),
    *(np.array(NUMBER, form).tobytes() for form in ("<i4", ">i4")), str(NUMBER).encode(), f"{NUMBER:x}".encode(),
]  # fmt: skip
"""Every form in which a canary might be written."""
COMPOSED = fc.compose(fc.algorithms.scaffold(fc.models.linear(features=3), 1e-12, 4))


def planted(rows=5):
    """Examples whose every target is the canary; the number of a patient is a column that no model reads."""
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    return {"x": x, "y": np.full(rows, VALUE, np.float32), "patient": np.full(rows, NUMBER, np.int32)}


def found(seen: dict[str, bytes]) -> list[tuple[str, bytes]]:
    return [(where, canary) for where, what in seen.items() for canary in SPELT if canary in what]


def files(*folders: Path) -> dict[str, bytes]:
    """The names and contents of all files below these folders."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): str(path.name).encode() + path.read_bytes() for path in paths}


def fails(*arguments, **named):
    raise ValueError(f"could not use {PATIENT} {VALUE} {NUMBER}")


def opens(*arguments, **named):
    (Path("/srv/data") / f"{PATIENT}.csv").read_text()


@pytest.fixture
def everything_logged(caplog):
    caplog.set_level(logging.DEBUG)
    return caplog


def test_the_canaries_are_found_where_they_are(tmp_path):
    fc.Clients.from_list([planted()]).save(tmp_path / PATIENT)
    assert {
        canary for _, canary in found({"data": planted()["y"].tobytes() + planted()["patient"].tobytes()})
    } == {SPELT[1], SPELT[7]}
    (tmp_path / "note").write_text(f"{PATIENT} {VALUE} {NUMBER}")
    assert len(found(files(tmp_path))) >= 5


@pytest.mark.meets(
    "164.502(b)",
    by="values that were planted in the data are in no message, log, checkpoint or file of others",
)
def test_nothing_of_a_site_is_in_messages_logs_checkpoints_or_the_files_of_others(
    tmp_path, everything_logged, capfd
):
    data = planted()
    data["x"][0, 0] = VALUE  # which its site sums for preprocessing
    sites = [dataclasses.replace(one, data=data) for one in site_files(folder=tmp_path)]
    with federation(COMPOSED, files=sites, folder=tmp_path, prepare=[fc.preprocess.Standardise("x")]) as (
        fed,
        at,
        transport,
    ):
        run = {"run_dir": tmp_path / "coordinator" / "run", "checkpoint_every": 1, "evaluate_every": 1}
        state = fc.fit(fed, 2, cohorts=lambda r: [0, 1, 2, 3], key=jax.random.key(1), **run).state
        assert float(np.abs(state.params["w"]).max()) > 0  # the sites did learn of what is planted
        texts = [repr(fed.cross_evaluate({"trained": state.params}, round=2))]
        for broken in (fails, opens):
            for what, ask in (
                ("client_update", lambda: fed.run(state, [0, 1, 2, 3])),
                ("totals", lambda: fed.evaluate(state)),
            ):
                with pytest.MonkeyPatch.context() as patch, pytest.raises(Paused) as paused:
                    patch.setattr(f"fedjax_core.sites.site.client_update.{what}", broken)
                    ask()
                texts.append(str(paused.value))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fedjax_core.sites.site.client_update.totals", broken)
                texts.append(repr(fed.cross_evaluate({"trained": state.params}, round=2)))
        asked = {header_of(raw).kind for raw in transport.sent}
        refusals = [at[0].handle(raw) for raw in unfit(fed)]
    assert asked >= {"describe", "measure", "train", "evaluate", "score"} and {
        header_of(raw).kind for raw in refusals
    } == {"refusal"}
    for name in NAMES:  # where the site's own staff finds it
        errors = (tmp_path / name / "errors.log").read_text()
        assert errors.count(f"could not use {PATIENT}") == 3 and f"{PATIENT}.csv" in errors
    out = capfd.readouterr()
    seen = {
        "sent": b"".join(transport.sent),
        "received": b"".join(transport.received),
        "refusals": b"".join(refusals),
    }
    seen |= {
        "raised": "".join(texts).encode(),
        "logged": everything_logged.text.encode(),
        "printed": (out.out + out.err).encode(),
    }
    seen |= files(tmp_path / "coordinator")
    assert b"ValueError" not in seen["received"]  # nor of which kind the error was
    assert any("checkpoints" in where for where in seen) and any("audit" in where for where in seen)
    assert found(seen) == []
    # Nor is there any in what the sites write for the others to verify: their audit logs and ledgers.
    assert found(files(*(tmp_path / name / "audit" for name in NAMES))) == []


def unfit(fed):
    """Requests of every kind there is that lack what they need, and one of a kind that there is not."""
    for i, kind in enumerate([*KINDS, "data"]):
        header = Header(
            kind=kind, run=fed.run_name, round=9, exchange=0, sender=COORDINATOR, recipient="sites", sequence=2**62 + i, created_unix_ms=0,
            config=fed.study.hash, fields={"columns": "y", "path": "../data"},
        )  # fmt: skip
        if kind not in ("describe", "measure"):  # which need nothing
            yield encode(header, {}, federations.COORDINATOR)


def test_a_site_that_cannot_read_its_data_says_no_more_than_the_kind_of_error(tmp_path, everything_logged):
    for broken, kind in ((fails, "ValueError"), (opens, "FileNotFoundError")):
        one = dataclasses.replace(site_files(folder=tmp_path)[0], data=broken)
        said = (
            SiteActor(
                one.name,
                {},
                Handed(one, federations.Study(COMPOSED, 4, 1), federations.COORDINATOR.public.text),
            )
            .key()
            .decode()
        )
        assert (
            said == f"{kind}; errors.log in its folder says more"
            and PATIENT in (tmp_path / NAMES[0] / "errors.log").read_text()
        )
    assert found({"logged": everything_logged.text.encode()}) == []


def test_nothing_of_a_site_is_in_rays_own_logs(tmp_path, capfd):
    """Two site processes, with data that only they read; after a round the policy of one is broken, with a
    canary in it."""
    sites = []
    for name in NAMES[:2]:
        fc.Clients.from_list([planted()], ids=[name]).save(tmp_path / name / "data")
        (tmp_path / f"{name}.toml").write_text(
            f'site = "{name}"\n[tasks]\nmode = "first-use"\n[leaving]\nfields = ["weight", "examples", "data", "loss"]\n'
        )
        sites.append(
            SiteFile(
                name=name,
                data=tmp_path / name / "data",
                folder=tmp_path / name,
                policy=tmp_path / f"{name}.toml",
            )
        )
    algorithm = fc.algorithms.fedavg(fc.models.linear(features=3), local=optax.sgd(1e-12))
    with fc.Federation(
        fc.compose(algorithm), sites, batch_size=4, epochs=1, folder=tmp_path / "coordinator"
    ) as fed:
        session = Path(ray.worker._global_node.get_session_dir_path())
        state, _ = fed.run(fed.init(jax.random.key(0)), [0, 1])
        sites[0].policy.write_text(f'site = "{NAMES[0]}"\npaused = "{PATIENT} {VALUE} {NUMBER}"\n')
        with pytest.raises(Paused) as paused:
            fed.run(state, [0, 1])
    out = capfd.readouterr()
    assert PATIENT in (tmp_path / NAMES[0] / "errors.log").read_text()
    seen = {
        "raised": str(paused.value).encode(),
        "printed": (out.out + out.err).encode(),
        **files(session / "logs"),
    }
    assert (
        len(seen) > 5
        and found({**seen, **files(tmp_path / "coordinator", tmp_path / NAMES[1] / "audit")}) == []
    )


@pytest.mark.meets("164.312(a)(1)", by="files for their owner alone, whatever the umask")
def test_nothing_that_a_site_or_a_coordinator_writes_can_be_read_by_other_users(tmp_path):
    before = os.umask(0o022)
    try:
        data = tmp_path / "records" / "charite"
        fc.Clients.from_list([planted()], ids=["charite"]).save(data)
        where = [dataclasses.replace(one, data=planted()) for one in site_files(folder=tmp_path)]
        where[0] = dataclasses.replace(where[0], data=data)
        with federation(COMPOSED, "normal", folder=tmp_path, files=where) as (fed, sites, _):
            fc.fit(
                fed,
                1,
                fc.cohorts.everyone(4),
                tmp_path / "coordinator" / "run",
                checkpoint_every=1,
                progress=False,
            )
            sites[0].context.note(ValueError(PATIENT))
    finally:
        os.umask(before)
    made = [path for path in tmp_path.rglob("*") if not path.is_symlink()]
    assert {"errors.log", "audit-000001.jsonl", "checkpoint.json", "metrics.jsonl", "kept-000000000001"} <= {
        path.name for path in made
    }
    assert not [path for top in tmp_path.iterdir() for path in open_to_others(top)]
    assert not [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077]
