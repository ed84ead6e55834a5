"""docs/compliance.md is what the marks of tests say now; a safeguard has a test, or says why none meets
it."""

import pytest

from scripts import compliance_page


def test_the_page_is_what_the_marks_of_tests_say():
    assert compliance_page.PAGE.read_text() == compliance_page.page(), (
        "run: python -m scripts.compliance_page"
    )


def test_a_safeguard_without_a_test_or_a_reason_is_an_error(monkeypatch):
    monkeypatch.setattr(compliance_page, "shown", dict)
    with pytest.raises(ValueError, match="either tests meet it"):
        compliance_page.page()
    monkeypatch.setattr(
        compliance_page, "shown", lambda: {"164.999": [("nothing", "tests/none.py::test_none")]}
    )
    with pytest.raises(ValueError, match="no such safeguard"):
        compliance_page.page()
