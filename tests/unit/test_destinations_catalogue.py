"""The catalogue says what the definitions say."""

import pytest

from destinations.catalogue import README, render, replaced
from destinations.registry import definitions


def test_the_catalogue_is_not_stale() -> None:
    text = README.read_text()
    assert replaced(text, render(definitions())) == text, "run: python -m destinations.catalogue"


def test_every_destination_and_setting_is_in_it() -> None:
    catalogue = render(definitions())
    for name, one in definitions().items():
        assert f"### `{name}`" in catalogue
        assert [setting for setting in one.settings.model_fields if f"| `{setting}` |" not in catalogue] == []


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the catalogue's marks are missing"):
        replaced("nothing here", "")
