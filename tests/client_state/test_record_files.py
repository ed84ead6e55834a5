"""Rows in files that workers share are the rows of a store in memory; what was not written by this run is not
taken for one."""

import copy
import pickle
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core.client_state import HostRows, RecordFiles, Records
from fedjax_core.client_state.record_files import FILES, PLACE, _free, _record
from fedjax_core.round import Kept

N = 7
FIRST = Kept(
    {"c": np.arange(3, dtype=np.float32), "half": np.ones(2, jnp.bfloat16)},
    (np.zeros((0,), np.float32), np.int32(5)),
)


def drawn(rng, k, like=FIRST):
    """Rows of k clients."""
    return jax.tree.map(lambda x: rng.integers(-9, 9, (k, *x.shape)).astype(x.dtype), like)


def same(a, b):
    return [(x.dtype, x.shape, x.tobytes()) for x in jax.tree.leaves(a)] == [
        (x.dtype, x.shape, x.tobytes()) for x in jax.tree.leaves(b)
    ]


class OnlyClients(NamedTuple):
    """What a store uses of a `State`."""

    clients: Any = ()


def lend(rows, who):
    return rows.lend(OnlyClients(), who, rows.round, N)


def take_back(rows, who, lent):
    return rows.take_back(OnlyClients(), OnlyClients(), who, lent, rows.round + 1, N, False)


def exchange(lent: Records, shares, rows: dict[int, Kept], reported):
    """One exchange, whose shares are done in another process, as far as pickle goes."""
    for places in shares:
        told: Records = pickle.loads(pickle.dumps(lent.of(places)))
        assert not jax.tree.leaves(told.write(rows[tuple(places)], reported[places]))
        lent.take_back(places, Kept((), ()), reported[places])


@pytest.mark.parametrize("exchanges", [1, 2, 3])
def test_rounds_of_shares_are_a_store_in_memory(exchanges, tmp_path):
    rng = np.random.default_rng(exchanges)
    rows, plain = RecordFiles(FIRST, N, tmp_path), HostRows(FIRST, N)
    for round in range(12):
        who = rng.permutation(N)[: rng.integers(1, N)]
        shares = [part for part in np.array_split(np.arange(len(who)), 2) if len(part)]
        lent, expected = lend(rows, who), plain.read(who)
        for _ in range(exchanges):
            found = {tuple(places): drawn(rng, len(places)) for places in shares}
            reported = rng.random(len(who)) < 0.7
            for places in shares:
                assert same(lent.of(places).read(), jax.tree.map(lambda x, at=places: x[at], expected))
            exchange(lent, shares, found, reported)
            for places in shares:
                told = reported[places]
                for into, new in zip(
                    jax.tree.leaves(expected), jax.tree.leaves(found[tuple(places)]), strict=True
                ):
                    into[places[told]] = new[told]
        # until the round is whole, what was before it
        assert same(rows.read(np.arange(N)), plain.read(np.arange(N)))
        assert take_back(rows, who, lent).clients is rows
        known = lent.here["record"] < N
        plain.write(who[known], jax.tree.map(lambda x, known=known: x[known], expected), round + 1)
        assert same(rows.read(np.arange(N)), plain.read(np.arange(N)))
        assert rows.touched == plain.touched and rows.round == plain.round
    assert same(rows.saved(), plain.saved())
    again = RecordFiles(FIRST, N, tmp_path / "again")
    again.write(np.array([6]), drawn(rng, 1), 3)
    assert (
        same(again.restored(rows.saved()).read(np.arange(N)), plain.read(np.arange(N))) and again.round == 12
    )


def test_nothing_is_written_where_a_row_lies_that_a_round_may_need():
    began, here = (np.zeros(FILES**2, PLACE) for _ in range(2))
    began["file"], here["file"] = (x.ravel() for x in np.meshgrid(np.arange(FILES), np.arange(FILES)))
    there = _free(np.arange(FILES**2), began, here, 7)
    assert not (there["file"] == began["file"]).any() and not (there["file"] == here["file"]).any()
    assert (
        set(there["file"]) <= set(range(FILES))
        and there["record"].tolist() == list(range(9))
        and set(there["writing"]) == {7}
    )


def test_a_share_may_be_left_halfway_and_done_again(tmp_path):
    rows, rng = RecordFiles(FIRST, N, tmp_path), np.random.default_rng(0)
    who, places = np.array([1, 4]), np.arange(2)
    rows.write(who, drawn(rng, 2), 1)
    before = copy.deepcopy(rows.read(who))
    lent = lend(rows, who)
    told, found = lent.of(places), drawn(rng, 2)
    told.write(jax.tree.map(lambda x: x[:1], found), np.array([True]))  # and there its worker died
    assert same(told.read(), before)
    lent.take_back(places, told.write(found, np.array([True, True])), np.array([True, True]))
    take_back(rows, who, lent)
    assert same(rows.read(who), found) and rows.round == 2


@pytest.mark.parametrize("how", ["cut", "in part", "of an older round", "of another run"])
def test_what_was_not_written_is_not_taken_for_a_row(how, tmp_path):
    rows, rng = RecordFiles(FIRST, N, tmp_path), np.random.default_rng(0)
    who = np.arange(N)
    rows.write(who, drawn(rng, N), 1)
    rows.read(who)
    file = tmp_path / "rows_1.bin"
    older = file.read_bytes()
    if how == "cut":
        file.write_bytes(older[:-9])
    elif how == "in part":
        half = _record(FIRST).itemsize // 2
        file.write_bytes(older[:-half] + bytes(half))
    elif how == "of an older round":
        for round in (2, 3):
            rows.write(who, drawn(rng, N), round)
        assert set(rows.where(who)["file"]) == {1}
        file.write_bytes(older)
    else:
        RecordFiles(FIRST, N, tmp_path).restored({"round": 1, "who": who, "rows": drawn(rng, N)})
    with pytest.raises(
        RuntimeError,
        match=r"of 7 rows in .* are not what was written there.*go on from the newest checkpoint",
    ):
        rows.read(who)


def test_only_those_who_took_part_take_room(tmp_path):
    # 4 GB a file, were they written
    rows = RecordFiles({"c": np.zeros(1000, np.float32)}, 1_000_000, tmp_path)
    rows.write(np.array([5, 999_999]), {"c": np.ones((2, 1000), np.float32)}, round=1)
    assert rows.touched == 2 and float(rows.read(np.array([999_999]))["c"].sum()) == 1000
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 1e6


def test_clients_who_keep_nothing_need_no_file_and_are_saved_and_restored(tmp_path):
    files, again = (RecordFiles(Kept((), ()), N, tmp_path / name) for name in ("one", "two"))
    who = np.array([2, 5])
    take_back(files, who, lend(files, who))
    assert files.touched == 2 and files.saved()["who"].tolist() == [2, 5] and not (tmp_path / "one").exists()
    assert again.restored(files.saved()).round == 1 and again.touched == 2
