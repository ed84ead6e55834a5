"""docs/zoo.md is what the docstrings and the tests say now; no method is without a proof."""

from scripts import zoo_page


def test_the_page_is_what_the_docstrings_and_tests_say():
    assert zoo_page.PAGE.read_text() == zoo_page.page(), "run: python -m scripts.zoo_page"
