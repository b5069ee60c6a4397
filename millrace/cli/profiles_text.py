"""How profiles look to a person, and how a person writes what to search for. Pure."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

_OPERATORS: Final = {
    "!=": "not_equals",
    ">=": "greater_or_equal",
    "<=": "less_or_equal",
    "=": "equals",
    ">": "greater_than",
    "<": "less_than",
    "~": "contains",
}
_COMPARISON: Final = re.compile(r"(?P<name>[^=!<>~:]+)(?P<op>!=|>=|<=|=|>|<|~)(?P<value>.*)", re.DOTALL)


def profile_lines(
    profile: Mapping[str, Any],
    *,
    traits: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
    links: Mapping[str, Any],
    merges: Mapping[str, Any],
) -> Iterator[str]:
    """One fact per line."""
    yield f"profile {profile['id']}"
    for one in profile["external_ids"]:
        yield f"id {one['type']}:{one['id']}"
    for name, one in sorted(traits.items()):
        source = f", {one['source_id']}" if one["source_id"] else ""
        yield f"trait {name} = {_json(one['value'])} ({one['updated_at']}{source})"
    yield f"events {profile['events']}"
    yield f"first seen {profile['first_seen']}"
    yield f"last seen {profile['last_seen']}"
    for one in events:
        name = f" {_json(one['event'])}" if one["event"] else ""
        yield f"event {one['timestamp']} {one['type']}{name} ({one['message_id']}, {one['source_id']})"
    for one in links["data"]:
        kind = "account" if one["to_collection"] == "accounts" else "user"
        names = ", ".join(f"{each['type']}:{each['id']}" for each in one["external_ids"])
        yield f"{kind} {names or one['id']} since {one['linked_at']}"
    if links["cursor"]["has_more"]:
        yield "… and more links"
    yield from _merge_lines(profile, merges)


def _merge_lines(profile: Mapping[str, Any], merges: Mapping[str, Any]) -> Iterator[str]:
    explained = set()
    for one in merges["data"]:
        explained.add(one["absorbed"])
        undone = " (undone)" if one["undone_by"] else ""
        cause = f"{one['trigger']['type']} {one['trigger']['message_id']} from {one['trigger']['source_id']}"
        yield f"merged {one['absorbed']} into {one['survivor']} {one['at']} by {cause}{undone}"
    for one in profile["merged"]:
        if one not in explained:
            yield f"merged {one}"


def found_line(one: Mapping[str, Any]) -> str:
    """A profile of a search: `use_1 user_id:u1 email:a@b.c plan="pro"`"""
    ids = [f"{each['type']}:{each['id']}" for each in one.get("external_ids") or ()]
    traits = [f"{name}={_json(value)}" for name, value in (one.get("traits") or {}).items()]
    return " ".join([one["id"], *ids, *traits])


def tree_of(conditions: Sequence[str]) -> dict[str, Any]:
    """The tree for conditions as they are typed: all of them must hold."""
    leaves = [_leaf(one) for one in conditions]
    return leaves[0] if len(leaves) == 1 else {"and": leaves}


def _leaf(text: str) -> dict[str, Any]:
    compared = _COMPARISON.fullmatch(text)
    if compared is not None:
        return {"trait": compared["name"].strip(), "op": _OPERATORS[compared["op"]], "value": _value(compared)}
    kind, colon, value = text.partition(":")
    if not colon:
        return {"trait": text, "op": "exists"}
    if not kind or not value:
        raise click.UsageError(f"{text!r} is no condition; write TYPE:VALUE, such as email:mia*, or TRAIT=VALUE")
    if value.endswith("*"):
        return {"id": kind, "op": "starts_with", "value": value[:-1]}
    return {"id": kind, "op": "equals", "value": value}


def _value(compared: "re.Match[str]") -> Any:
    """Numbers and booleans as JSON has them, anything else as text; in quotes always as text."""
    text = compared["value"].strip()
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int | float | bool) else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
