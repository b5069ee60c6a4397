"""The reference of mappings is true: each of its examples is run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from destinations.registry import definition
from pipeline.delivery.mapping import mapping_faults
from pipeline.language.mapping import compile_mapping
from pipeline.language.mapping.compiling import NAMES
from pipeline.language.triggers import compile_trigger
from schemas.config import MappingConfig

WHOLE = (Path(__file__).parents[2] / "pipeline/language/README.md").read_text()
TEXT = WHOLE[WHOLE.index("\n## Mappings\n") :]
EVENT: dict[str, Any] = json.loads(TEXT.split("```json\n")[1].split("```")[0])


def rows(header: str) -> list[tuple[str, str]]:
    """The rows of the table with this header, without the marks of code."""
    lines = TEXT[TEXT.index(header) :].split("\n\n")[0].splitlines()[2:]
    cells = [re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines]
    return [(left.strip("`").replace("\\|", "|"), right.strip("`").replace("\\|", "|")) for left, right in cells]


@pytest.mark.parametrize(("value", "gives"), rows("| as a value | gives |"))
def test_a_directive_gives_what_the_reference_says(value: str, gives: str) -> None:
    made = compile_mapping({"v": json.loads(value)})(EVENT)
    assert made == ({} if gives == "undefined" else {"v": json.loads(gives)})


@pytest.mark.parametrize(("trigger", "says"), rows("| trigger | of an event"))
def test_a_trigger_says_what_the_reference_says(trigger: str, says: str) -> None:
    assert json.dumps(compile_trigger(trigger)(EVENT)) == says


def test_every_directive_has_an_example() -> None:
    assert {name for name in NAMES if f'{{"{name}":' not in TEXT} == set()


def test_the_first_example_is_a_configuration() -> None:
    block = TEXT.split("\n\n")[1]
    given = yaml.safe_load(block)["mappings"]
    assert list(mapping_faults(definition("webhook"), [MappingConfig.model_validate(one) for one in given])) == []
