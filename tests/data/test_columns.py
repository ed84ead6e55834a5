import numpy as np
import pytest

import fedjax_core as fc
from fedjax_core.data.columns import Column


def test_a_file_that_was_cut_short_is_told(tmp_path):
    fc.Clients.from_list([{"x": np.ones((50, 3), np.float32)} for _ in range(4)]).save(tmp_path / "data")
    column = Column("x", fc.Clients.open(tmp_path / "data").columns["x"])
    out = np.zeros((50, 3), np.float32)
    column.read(100, 150, out)
    assert out.sum() == 150
    (file,) = (tmp_path / "data").glob("column_*.npy")
    with open(file, "r+b") as opened:
        opened.truncate(file.stat().st_size - 700)
    with pytest.raises(OSError, match=r"ends after .* bytes of its file: was it cut short\?"):
        column.read(150, 200, out)


def test_part_of_a_mapped_column_is_read_from_its_place(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.int64).reshape(20, 2))
    out = np.zeros((2, 2), np.int32)
    Column("x", np.load(tmp_path / "x.npy", mmap_mode="r")[5:15]).read(3, 5, out)
    assert out.tolist() == [[16, 17], [18, 19]]
