"""The reference of the filter language says what holds: each of its examples is run."""

import json
import re
from pathlib import Path

import pytest

from millrace.config.load import load_text
from pipeline.delivery import decide
from pipeline.delivery.decide import consented
from pipeline.language.filters import compile_condition

TEXT = (Path(__file__).parents[2] / "pipeline/language/README.md").read_text()
FILTERS = TEXT[TEXT.index("## Filters") :]
EVENT = json.loads(re.search(r"```json\n(.*?)```", FILTERS, re.DOTALL)[1])  # type: ignore[index]  # it is there
EXAMPLES = re.findall(r"^\| `([^{].*?)` \| (passes|does not|cannot be evaluated)", FILTERS, re.MULTILINE)
CONSENT = re.findall(r"^\| `(\{.+\})` \| (passes|is kept back)", FILTERS, re.MULTILINE)


@pytest.mark.parametrize(("expression", "says"), EXAMPLES)
def test_an_example_comes_to_what_it_says(expression: str, says: str) -> None:
    expected = {"passes": True, "does not": False, "cannot be evaluated": None}
    assert compile_condition(expression)(EVENT) is expected[says]


@pytest.mark.parametrize(("consent", "says"), CONSENT)
def test_an_example_of_consent_comes_to_what_it_says(consent: str, says: str) -> None:
    assert consented({"consent": json.loads(consent)}, ["advertising", "analytics"]) is (says == "passes")


def test_every_reason_for_which_an_event_is_kept_back_has_a_remedy() -> None:
    reasons = {value for name, value in vars(decide).items() if name == value and name.isupper()}
    assert set(re.findall(r"^\| `([A-Z_]+)` \| \w", FILTERS, re.MULTILINE)) == reasons


def test_the_examples_are_found() -> None:
    assert (len(EXAMPLES), len(CONSENT)) == (22, 4)


@pytest.mark.parametrize("section", ["filter", "filters", "consent"])
def test_an_example_of_the_configuration_is_one(section: str) -> None:
    found = re.search(rf"^    {section}:.*\n(?:     .*\n)*", FILTERS, re.MULTILINE)
    assert found is not None
    text = f"destinations:\n  crm:\n    type: webhook\n{found[0]}"
    destinations = load_text(text, "millrace.yaml", {}, None).config.destinations
    assert destinations is not None
    assert getattr(destinations["crm"], section)
