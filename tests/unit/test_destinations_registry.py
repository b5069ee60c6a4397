"""How destinations are found, and what finding them costs."""

import subprocess
import sys
from types import ModuleType

import pytest

from destinations.hostile import definition as hostile
from destinations.registry import collect, definition, definitions
from schemas.errors import ConfigError


def test_every_module_with_a_definition_is_found_by_name() -> None:
    assert {"hostile", "webhook"} <= set(definitions())
    assert list(definitions()) == sorted(definitions())
    assert definition("hostile") is hostile


def test_an_unknown_name_is_answered_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError) as fault:
        definition("webhok")
    assert str(fault.value) == (
        f"destination type 'webhok' does not exist; choose one of: {', '.join(sorted(definitions()))}"
    )


def test_two_modules_cannot_claim_one_name() -> None:
    one, two = ModuleType("one"), ModuleType("two")
    vars(one)["definition"] = vars(two)["definition"] = hostile
    with pytest.raises(ConfigError, match="'hostile' is defined twice: in one and two"):
        collect([one, two])


def test_a_module_without_a_definition_is_no_destination() -> None:
    other = ModuleType("other")
    vars(other)["definition"] = "a word in a dictionary"
    assert collect([other]) == {}


def test_listing_imports_no_vendor_library() -> None:
    program = (
        "import sys; from destinations.registry import definitions; definitions();"
        "print(sorted({'aiohttp', 'duckdb', 'pyarrow', 'psycopg'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", sorted(definitions()))
def test_every_setting_is_described_and_every_action_is_a_verb_and_a_noun(name: str) -> None:
    one = definition(name)
    assert [field for field, info in one.settings.model_fields.items() if not info.description] == []
    assert [action.name for action in one.actions if "_" not in action.name] == []
