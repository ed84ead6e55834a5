import hashlib
import http.server
import threading

import numpy as np
import pytest

from fedjax_core.data.datasets import base, breast_cancer, heart_disease
from fedjax_core.data.datasets.breast_cancer import HOSPITALS

CONTENT = b"63.0,1.0,145.0\n67.0,1.0,160.0\n"


@pytest.fixture
def server():
    """A web server that answers with the next of `answers` (status, bytes), and counts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        answers = ()
        asked = 0

        def do_GET(self):
            type(self).asked += 1
            status, content = self.answers[self.asked - 1]
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    Handler.url = f"http://127.0.0.1:{listening.server_port}/"
    yield Handler
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.delenv(base.DATA, raising=False)
    monkeypatch.setenv("FEDJAX_CORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wanted(url, content=CONTENT, name="a.data"):
    return base.Remote(name, url + name, hashlib.sha256(content).hexdigest(), len(content))


def test_a_download_is_checked_kept_and_not_repeated(server, cache):
    server.answers = [(200, CONTENT)]
    for _ in range(2):
        assert base.find("set", [wanted(server.url)])["a.data"].read_bytes() == CONTENT
    assert server.asked == 1
    assert [path.name for path in (cache / "set").iterdir()] == ["a.data"]


def test_a_busy_server_is_asked_again(server, cache):
    server.answers = [(503, b""), (200, CONTENT[:7]), (200, CONTENT)]  # then half a file, then all of it
    assert base.find("set", [wanted(server.url)], wait_seconds=0)["a.data"].read_bytes() == CONTENT
    assert server.asked == 3


@pytest.mark.parametrize(
    "other", [CONTENT.upper() + b"x", b"y" * len(CONTENT)], ids=["longer", "same length"]
)
def test_another_file_is_refused_and_not_kept(server, cache, other):
    server.answers = [(200, other)]
    with pytest.raises(base.DataError, match=r"another file than a\.data: sha256 .* expected .* not kept"):
        base.find("set", [wanted(server.url)])
    assert list((cache / "set").iterdir()) == []


def test_no_network_says_where_to_put_which_files(server, cache, monkeypatch):
    files = [wanted(server.url), wanted(server.url, b"other", "b.data")]
    server.answers = [(404, b""), (404, b"")]
    with pytest.raises(base.DataError) as told:
        base.find("set", files)
    for part in (base.DATA, "<folder>/set", "a.data", files[0].sha256, "b.data", files[1].sha256):
        assert part in str(told.value)
    assert server.asked == 1  # a file that is not there is not asked for again
    monkeypatch.setenv(base.DATA, "/given")
    with pytest.raises(base.DataError, match="put these files into /given/set"):
        base.find("set", files)


def test_a_given_folder_comes_first_and_is_checked_too(cache, monkeypatch, tmp_path):
    monkeypatch.setenv(base.DATA, str(tmp_path / "given"))
    path = tmp_path / "given" / "set" / "a.data"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert base.find("set", [wanted("http://nowhere.invalid/")]) == {"a.data": path}
    path.write_bytes(CONTENT[1:])
    with pytest.raises(base.DataError, match="not the file it should be"):
        base.find("set", [wanted("http://nowhere.invalid/")])
    assert path.exists()  # not ours to delete


def test_a_damaged_copy_in_the_cache_is_replaced(server, cache, capsys):
    server.answers = [(200, CONTENT)] * 2
    path = base.find("set", [wanted(server.url)])["a.data"]
    path.write_bytes(b"damaged")
    assert base.find("set", [wanted(server.url)])["a.data"].read_bytes() == CONTENT
    assert "Downloading it again" in capsys.readouterr().err


@pytest.fixture(scope="module")
def heart(data_dir):
    if not (data_dir / "heart_disease").is_dir():
        pytest.skip(f"no heart records: {data_dir} has no folder heart_disease")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(base.DATA, str(data_dir))
        return heart_disease()


def test_heart_counts_and_outcomes_are_the_published_ones(heart):
    assert heart.train.ids.tolist() == ["cleveland", "hungarian", "switzerland", "va"]
    assert heart.train.sizes.tolist() == [199, 172, 30, 85] and heart.test.sizes.tolist() == [104, 89, 16, 45]
    assert heart.pooled_train.sizes.tolist() == [486] and heart.pooled_test.sizes.tolist() == [254]
    assert [round(float(hospital["y"].mean()), 3) for hospital in heart.train] == [0.457, 0.378, 1.0, 0.776]
    assert [round(float(hospital["y"].mean()), 3) for hospital in heart.test] == [0.462, 0.371, 0.938, 0.778]


def test_heart_inputs_equal_the_stored_ones_bit_for_bit(heart, data_dir):
    path = data_dir / "golden_fl" / "heart_seed42.npz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with np.load(path) as golden:
        for i in range(4):
            for part, clients in (("train", heart.train), ("test", heart.test)):
                np.testing.assert_array_equal(clients[i]["x"], golden[f"x_{part}_{i}"])
                np.testing.assert_array_equal(clients[i]["y"], golden[f"y_{part}_{i}"][:, 0])


def test_heart_pooled_patients_are_scaled_together(heart):
    x = heart.pooled_train[0]["x"].astype(np.float64)
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(axis=0, ddof=1), 1, atol=1e-6)
    np.testing.assert_array_equal(
        heart.pooled_test[0]["y"], np.concatenate([hospital["y"] for hospital in heart.test])
    )


def test_breast_cancer_uses_every_patient_once_and_keeps_the_counts():
    found = breast_cancer()
    for i, (patients, malignant) in enumerate(HOSPITALS.values()):
        y = np.concatenate([found.train[i]["y"], found.test[i]["y"]])
        assert (len(y), y.sum()) == (patients, malignant)
    rows = np.concatenate([found.train.columns["x"], found.test.columns["x"]])
    assert rows.shape == (569, 30) and len(np.unique(rows, axis=0)) == 569
    pooled = found.pooled_train[0]["x"]
    np.testing.assert_array_equal(pooled, found.train.columns["x"])
    np.testing.assert_allclose(
        (pooled.mean(axis=0), pooled.std(axis=0)), (np.zeros(30), np.ones(30)), atol=1e-5
    )


def test_breast_cancer_is_dealt_by_the_seed_alone():
    assert (
        breast_cancer(3).train.fingerprint()
        == breast_cancer(3).train.fingerprint()
        != breast_cancer(4).train.fingerprint()
    )
