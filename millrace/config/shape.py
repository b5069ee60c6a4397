"""What a pydantic model knows about a path, for faults that suggest a remedy."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from millrace.config.tree import Path

_HINTS: Mapping[str, str] = {
    "string_type": "must be text; put it in quotes",
    "secret_type": "must be text; put it in quotes",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list: [one, two], or one `- item` a line",
    "list_type": "must be a list: [one, two], or one `- item` a line",
    "dict_type": "must be a mapping: `key: value` lines, indented",
    "model_type": "must be a mapping: `key: value` lines, indented",
    "model_attributes_type": "must be a mapping: `key: value` lines, indented",
    "string_pattern_mismatch": (
        "is not a name; start with a lower-case letter, then letters, digits, _ or -, 63 in all at most"
    ),
    "string_too_short": "must not be empty; give a value",
    "too_short": "must not be empty; give a value",
    "url_parsing": "is not a URL; write it whole: https://host/path",
    "url_scheme": "is not a URL of a kind that works here; begin it with https:// or http://",
}


def suggest(word: str, known: Sequence[str]) -> str:
    """`did you mean x? Known: x, y`, so that a typing error mends itself."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    listed = f"known: {', '.join(known)}" if known else "nothing is known here"
    return f"did you mean {close[0]}? ({listed})" if close else listed


def explain(model: type[BaseModel], kind: str, path: Path, message: str, word: str) -> str:
    """A pydantic error in our words with its remedy. `word` is the text found at the path, used only to find a
    spelling that was meant; it is never repeated."""
    name = str(path[-1]) if path else ""
    if kind == "missing":
        return f"required; add `{name}: …`"
    if kind == "extra_forbidden":
        return f"unknown key; {suggest(name, fields_at(model, path[:-1]))}"
    if kind == "literal_error":
        said = message.removeprefix("Input should be ")
        close = get_close_matches(word, [one.strip("'") for one in said.replace(" or ", ", ").split(", ")], n=1)
        return f"must be {said}" + (f"; did you mean {close[0]}?" if close else "")
    if kind in _HINTS:
        return _HINTS[kind]
    plain = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("too_long", "string_too_long"):  # "Tuple should have at most 50 items after validation, not 51"
        return f"must have {plain.partition(' should have ')[2].replace(' after validation', '')}"
    return plain.replace("Input should be", "must be", 1)


def fields_at(model: type[BaseModel], path: Path) -> Sequence[str]:
    """The keys that a model knows at a path; none where it takes any."""
    here: Any = model
    for part in path:
        here = _child(here, part)
    found = _model(here)
    return [field.alias or name for name, field in found.model_fields.items()] if found else []


def _child(annotation: Any, part: str | int) -> Any:
    model = _model(annotation)
    if model is not None:
        fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
        return fields.get(str(part))
    for option in _options(annotation):
        arguments = [one for one in get_args(option) if one is not Ellipsis]
        if arguments:
            return arguments[-1]
    return None


def _model(annotation: Any) -> type[BaseModel] | None:
    for option in _options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _options(annotation: Any) -> Sequence[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _options(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [leaf for one in get_args(annotation) for leaf in _options(one)]
    return [annotation]
