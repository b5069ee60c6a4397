"""The JSON Schema that editors use is generated, committed and never stale."""

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from millrace.config.json_schema import config_schema

COMMITTED = Path(__file__).parents[2] / "schemas" / "json" / "millrace.schema.json"


class Inner(BaseModel):
    depth: int


class CrmSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")
    api_key: SecretStr
    mode: Literal["fast", "slow"] = Field("fast", description="How.")
    inner: Inner | None = None


def test_the_committed_schema_is_what_the_models_say() -> None:
    fresh = json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n"
    assert COMMITTED.read_text() == fresh, "stale: run `millrace schema > schemas/json/millrace.schema.json`"


def test_each_destination_type_brings_its_settings() -> None:
    definitions = config_schema({"crm": CrmSettings})["$defs"]

    assert definitions["DestinationConfig"]["allOf"] == [
        {
            "if": {"properties": {"type": {"const": "crm"}}, "required": ["type"]},
            "then": {"properties": {"settings": {"$ref": "#/$defs/crm.settings"}}, "required": ["settings"]},
        }
    ]
    assert definitions["DestinationConfig"]["properties"]["type"]["anyOf"][0] == {"type": "string", "enum": ["crm"]}
    assert definitions["crm.settings"]["required"] == ["api_key"]
    assert definitions["crm.settings"]["additionalProperties"] is False
    assert definitions["crm.settings"]["properties"]["inner"]["anyOf"][0] == {"$ref": "#/$defs/crm.Inner"}
    assert definitions["crm.settings"]["properties"]["mode"] == {
        "anyOf": [{"enum": ["fast", "slow"], "type": "string"}, {"$ref": "#/$defs/Variable"}],
        "default": "fast",
        "description": "How.",
        "title": "Mode",
    }


def test_a_variable_will_do_wherever_a_number_is_asked_for() -> None:
    definitions = config_schema({})["$defs"]
    assert {"$ref": "#/$defs/Variable"} in definitions["LogConfig"]["properties"]["partitions"]["anyOf"]
    assert {"$ref": "#/$defs/Variable"} in definitions["RetentionConfig"]["properties"]["days"]["anyOf"]
