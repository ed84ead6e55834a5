"""Rows in files that workers share are the rows of a store in memory; what was not written by this run is not taken for one."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_core.cluster.keeper import InFiles
from fedjax_core.cluster.rows import FILES, SharedRows, Stored, Where
from fedjax_core.lanes.program import Collected
from fedjax_core.lanes.tiers import Rows
from fedjax_core.round import Kept

N = 7
FIRST = Kept({"c": np.arange(3, dtype=np.float32), "half": np.ones(2, jnp.bfloat16)}, (np.zeros((0,), np.float32), np.int32(5)))


def drawn(rng, k, like=FIRST):
    """Rows of k clients."""
    return jax.tree.map(lambda x: rng.integers(-9, 9, (k, *x.shape)).astype(x.dtype), like)


def same(a, b):
    return [(x.dtype, x.shape, x.tobytes()) for x in jax.tree.leaves(a)] == [(x.dtype, x.shape, x.tobytes()) for x in jax.tree.leaves(b)]


def collected(kept, touched):
    nothing = np.zeros(())
    return Collected((), kept, np.asarray(touched), nothing, nothing, nothing, {})


def exchange(held: InFiles, shares, rows: dict[int, Kept], reported):
    """One exchange, whose shares are done in another process, as far as pickle goes."""
    for places in shares:
        told: Stored = pickle.loads(pickle.dumps(held.of(places)))
        found = told.write(collected(rows[tuple(places)], reported[places]))
        assert not jax.tree.leaves(found.kept)
        held.take_back(places, found)


@pytest.mark.parametrize("exchanges", [1, 2, 3])
def test_rounds_of_shares_are_a_store_in_memory(exchanges, tmp_path):
    rng = np.random.default_rng(exchanges)
    rows, plain = SharedRows(FIRST, N, tmp_path), Rows(FIRST, N)
    for round in range(12):
        who = rng.permutation(N)[: rng.integers(1, N)]
        shares = [part for part in np.array_split(np.arange(len(who)), 2) if len(part)]
        held, expected = InFiles(rows, who), plain.read(who)
        for _ in range(exchanges):
            found = {tuple(places): drawn(rng, len(places)) for places in shares}
            reported = rng.random(len(who)) < 0.7
            for places in shares:
                assert same(held.of(places).read(), jax.tree.map(lambda x, at=places: x[at], expected))
            exchange(held, shares, found, reported)
            for places in shares:
                told = reported[places]
                for into, new in zip(jax.tree.leaves(expected), jax.tree.leaves(found[tuple(places)]), strict=True):
                    into[places[told]] = new[told]
        assert same(rows.read(np.arange(N)), plain.read(np.arange(N)))  # until the round is whole, what was before it
        rows.moved(who, held.now, round + 1)
        known = held.now.record < N
        plain.write(who[known], jax.tree.map(lambda x, known=known: x[known], expected), round + 1)
        assert same(rows.read(np.arange(N)), plain.read(np.arange(N)))
        assert rows.touched == plain.touched and rows.round == plain.round
    assert same(rows.saved(), plain.saved())
    again = SharedRows(FIRST, N, tmp_path / "again")
    again.write(np.array([6]), drawn(rng, 1), 3)
    assert same(again.restored(rows.saved()).read(np.arange(N)), plain.read(np.arange(N))) and again.round == 12


def test_nothing_is_written_where_a_row_lies_that_a_round_may_need():
    rows = object.__new__(SharedRows)
    rows._first, rows._files, rows._writings = FIRST, None, 0
    began, here = (x.ravel().astype(np.int8) for x in np.meshgrid(np.arange(FILES), np.arange(FILES)))
    at = np.zeros(len(began), np.int64)
    there = rows.share(np.arange(9), Where(began, at, at), Where(here, at, at)).there
    assert not (there.file == began).any() and not (there.file == here).any() and set(there.file) <= set(range(FILES))


def test_a_share_may_be_left_halfway_and_done_again(tmp_path):
    rows, rng = SharedRows(FIRST, N, tmp_path), np.random.default_rng(0)
    who, places = np.array([1, 4]), np.arange(2)
    rows.write(who, drawn(rng, 2), 1)
    before = copy.deepcopy(rows.read(who))
    held = InFiles(rows, who)
    told, found = held.of(places), drawn(rng, 2)
    told.write(collected(jax.tree.map(lambda x: x[:1], found), [True]))  # and there its worker died
    assert same(told.read(), before)
    held.take_back(places, told.write(collected(found, [True, True])))
    rows.moved(who, held.now, 2)
    assert same(rows.read(who), found)


@pytest.mark.parametrize("how", ["cut", "in part", "of an older round", "of another run"])
def test_what_was_not_written_is_not_taken_for_a_row(how, tmp_path):
    rows, rng = SharedRows(FIRST, N, tmp_path), np.random.default_rng(0)
    who = np.arange(N)
    rows.write(who, drawn(rng, N), 1)
    rows.read(who)
    file = tmp_path / "rows_1.bin"
    older = file.read_bytes()
    if how == "cut":
        file.write_bytes(older[:-9])
    elif how == "in part":
        half = rows._files._record.itemsize // 2
        file.write_bytes(older[:-half] + bytes(half))
    elif how == "of an older round":
        for round in (2, 3):
            rows.write(who, drawn(rng, N), round)
        assert set(rows.where(who).file) == {1}
        file.write_bytes(older)
    else:
        SharedRows(FIRST, N, tmp_path).restored({"round": 1, "who": who, "rows": drawn(rng, N)})
    with pytest.raises(RuntimeError, match=r"of 7 rows in .* are not what was written there.*go on from the newest checkpoint"):
        rows.read(who)


def test_only_those_who_took_part_take_room(tmp_path):
    rows = SharedRows({"c": np.zeros(1000, np.float32)}, 1_000_000, tmp_path)  # 4 GB a file, were they written
    rows.write(np.array([5, 999_999]), {"c": np.ones((2, 1000), np.float32)}, round=1)
    assert rows.touched == 2 and float(rows.read(np.array([999_999]))["c"].sum()) == 1000
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) < 1e6
