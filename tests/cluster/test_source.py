import numpy as np
import pytest

from fedjax_core import Clients
from fedjax_core.cluster.source import Folder, Sent, source_of
from tests.zoo import clients


def test_clients_of_a_folder_are_opened_there_and_others_are_sent(tmp_path):
    clients().save(tmp_path / "data")
    opened = Clients.open(tmp_path / "data")
    source = source_of(opened)
    assert source == Folder(str(tmp_path / "data"), opened.fingerprint())
    assert source.open().fingerprint() == opened.fingerprint()
    assert isinstance(source_of(clients()), Sent)
    # some of the folder's clients are not the folder
    assert isinstance(source_of(opened.select([1, 2])), Sent)
    assert source_of(opened.select([1, 2])).open().sizes.tolist() == opened.sizes[[1, 2]].tolist()


def test_a_folder_with_other_data_is_refused(tmp_path):
    clients().save(tmp_path / "data")
    source = source_of(Clients.open(tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "before")
    Clients.from_list([{"x": np.zeros((2, 3), np.float32)}]).save(tmp_path / "data")
    with pytest.raises(ValueError, match="holds other data than where the simulation was made"):
        source.open()
