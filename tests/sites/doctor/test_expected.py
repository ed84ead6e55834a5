"""What a site is told to expect is read back as it was written."""

from fedjax_core.consortium import example
from fedjax_core.sites.doctor.expected import Expected
from fedjax_core.sites.protocol.schema import columns


def test_what_was_expected_is_read_as_it_was_written(tmp_path):
    said = Expected.here(example.study(), columns(example.hospitals(2)["hospital-1"]))
    said.write(tmp_path / "expected.toml")
    assert Expected.read(tmp_path / "expected.toml") == said
    assert (
        said.columns == {"x": "float32[30]", "y": "int32[]"}
        and "jax" in said.packages
        and "fedjax_core" in said.code
    )
