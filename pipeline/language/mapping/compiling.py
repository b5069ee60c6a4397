"""From directives to one function: every fault at once, with its path and a remedy.

A part that is not there is UNDEFINED, and the keys it would fill go. `@merge` alone sees them before they go: there, such a
key takes away what an earlier object has, as in the reference. `keep` says of how many levels of objects they are kept.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

from pipeline.language.mapping.liquid import LiquidError, compile_liquid
from pipeline.language.mapping.paths import UNDEFINED, Value, at
from pipeline.language.mapping.shapes import flattened, is_blank, is_truthy, without_nulls
from pipeline.language.mapping.texts import json_text, template, text_of
from schemas.exact_json import json_loads

Mapped = Callable[[Mapping[str, Any]], Any]
"""A payload from an event. None when the whole mapping is a directive that finds nothing."""

Path = tuple[str | int, ...]
ROOT: Final = "__segment_internal_directive"
DEPTH_LIMIT: Final = 50
PATTERN_LIMIT: Final = 10  # characters of a pattern and of its replacement
_EVERY: Final = 1 << 30


class MappingFault(NamedTuple):
    """One thing that is wrong: where (keys and indices from the mapping's root), what, and what to do."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{'$' + ''.join(f'[{one}]' if isinstance(one, int) else f'.{one}' for one in self.path)}: {self.what}"


class MappingError(ValueError):
    """A mapping that is none: everything that is wrong with it."""

    def __init__(self, faults: Sequence[MappingFault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


def compile_mapping(directives: Any) -> Mapped:
    """The function that a mapping says. MappingError when it is none.

    What it gives shares parts with the event, so neither may be changed. It raises nothing of an event's but ValueError, for
    one that is nested deeper than Python goes."""
    compiler = _Compiler()
    value = compiler.root(directives, ())
    if compiler.faults:
        raise MappingError(compiler.faults)

    def mapped(event: Mapping[str, Any]) -> Any:
        try:
            made = value(event if type(event) is dict else dict(event))
        except RecursionError as error:
            raise ValueError("the event is nested too deeply") from error
        return None if made is UNDEFINED else made

    return mapped


class _Compiler:
    """One pass over one mapping; notes what is wrong with it and goes on."""

    def __init__(self) -> None:
        self.faults: list[MappingFault] = []

    def fault(self, path: Path, what: str) -> Value:
        self.faults.append(MappingFault(path, what))
        return _undefined

    # ── Values ────────────────────────────────────────────────────────────────────────────────────────────────────

    def root(self, node: Any, path: Path) -> Value:
        """A whole mapping: one with a root directive becomes its `mapping`."""
        if not isinstance(node, dict) or ROOT not in node:
            return self.value(node, path, 0)
        directive = node[ROOT]
        rest = {key: one for key, one in node.items() if key != ROOT}
        if not isinstance(directive, dict) or len(directive) != 1:
            return self.fault((*path, ROOT), "must be one directive, such as @transform; write nothing beside it")
        ((name, options),) = directive.items()
        if not isinstance(options, dict):
            return self.fault((*path, ROOT, name), "must be an object, whose mapping is all other keys; write one")
        return self.value({name: options | {"mapping": rest}}, (*path, ROOT), 0)

    def value(self, node: Any, path: Path, keep: int) -> Value:
        if len(path) > DEPTH_LIMIT:
            return self.fault(path, f"nested deeper than {DEPTH_LIMIT}; write it flatter")
        if isinstance(node, dict):
            named = [key for key in node if isinstance(key, str) and key.startswith("@")]
            return self.directive(node, named, path, keep) if named else self.object(node, path, keep)
        if isinstance(node, list | tuple):
            return _list([self.value(one, (*path, index), 0) for index, one in enumerate(node)])
        if node is None or isinstance(node, str | int | float):
            return _constant(node)
        return self.fault(path, "is no JSON value; put it in quotes")

    def object(self, node: Mapping[Any, Any], path: Path, keep: int) -> Value:
        pairs = []
        for key, one in node.items():
            if not isinstance(key, str):
                return self.fault(path, "has a key that is no text; put it in quotes")
            pairs.append((key, self.value(one, (*path, key), max(0, keep - 1))))
        return _object(pairs) if keep == 0 else _open_object(pairs)

    def directive(self, node: Mapping[str, Any], named: Sequence[str], path: Path, keep: int) -> Value:
        name = named[0]
        others = [key for key in node if key not in (name, "_metadata")]
        if others:
            return self.fault(path, f"has {', '.join(map(str, others))} beside {name}; a directive stands alone")
        compile_ = _DIRECTIVES.get(name)
        if compile_ is None:
            close = get_close_matches(name, _DIRECTIVES, n=1)
            meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(_DIRECTIVES))}"
            return self.fault(path, f"unknown directive {name}; {meant}")
        return compile_(self, node[name], (*path, name), keep)

    # ── Options ───────────────────────────────────────────────────────────────────────────────────────────────────

    def options(self, given: Any, path: Path, known: Sequence[str], needed: Sequence[str]) -> dict[str, Any] | None:
        """The options of a directive; None, and faults, when they cannot be used."""
        if not isinstance(given, dict):
            self.fault(path, f"must be an object with {', '.join(needed or known)}; write one")
            return None
        before = len(self.faults)
        for key in given:
            if key not in known and key != "_metadata":
                self.fault((*path, str(key)), f"unknown option; there are {', '.join(known)}")
        for key in needed:
            if not is_truthy(given.get(key)):
                self.fault(path, f"needs {key}; add it")
        return given if len(self.faults) == before else None

    def text(self, node: Any, path: Path, of: Callable[[str], Value]) -> Value:
        """A text, or a directive that gives one at run time."""
        if isinstance(node, str):
            return of(node)
        if not isinstance(node, dict) or not any(str(key).startswith("@") for key in node):
            return self.fault(path, "must be a text or a directive; put it in quotes")
        given = self.value(node, path, 0)

        def value(payload: Any) -> Any:
            text = given(payload)
            return of(text)(payload) if isinstance(text, str) else UNDEFINED

        return value

    def found(self, node: Any, path: Path) -> Value:
        """What is at a path, or what a directive gives."""
        if isinstance(node, str):
            return at(node)
        if isinstance(node, dict) and any(str(key).startswith("@") for key in node):
            return self.value(node, path, 0)
        return self.fault(path, "must be a path or a directive; write one")

    def choice(self, given: Any, path: Path, choices: Sequence[str]) -> None:
        if given not in choices:
            self.fault(path, f"must be {' or '.join(choices)}; choose one")


# ── Directives ────────────────────────────────────────────────────────────────────────────────────────────────────


def _path(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    return compiler.text(given, path, at)


def _template(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    return compiler.text(given, path, template)


def _literal(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    return compiler.value(given, path, keep)


def _if(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    options = compiler.options(given, path, ("exists", "blank", "then", "else"), ())
    if options is None:
        return _undefined
    if not is_truthy(options.get("exists")) and not is_truthy(options.get("blank")):
        return compiler.fault(path, "needs exists or blank; add the value that decides")
    asked = "exists" if "exists" in options else "blank"
    decides = compiler.value(options[asked], (*path, asked), 0)
    then = compiler.value(options["then"], (*path, "then"), keep) if "then" in options else _undefined
    other: Value = _undefined
    if is_truthy(options.get("else")):
        other = compiler.value(options["else"], (*path, "else"), keep)

    def exists(payload: Any) -> Any:
        value = decides(payload)
        return other(payload) if value is None or value is UNDEFINED else then(payload)

    def blank(payload: Any) -> Any:
        return other(payload) if is_blank(decides(payload)) else then(payload)

    return exists if asked == "exists" else blank


def _array_path(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    if not isinstance(given, list | tuple) or not 1 <= len(given) <= 2:
        return compiler.fault(path, "must be a list of a path and a shape; write [path, {…}]")
    found = compiler.found(given[0], (*path, 0))
    if len(given) == 1 or not isinstance(given[1], dict) or not given[1]:
        return found
    shape = compiler.value(given[1], (*path, 1), 0)

    def value(payload: Any) -> Any:
        root = found(payload)
        if isinstance(root, list):
            return [_or_null(shape(item)) for item in root]
        return [_or_null(shape(root))] if isinstance(root, dict) else root

    return value


def _case(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    options = compiler.options(given, path, ("operator", "value"), ("operator",))
    if options is None:
        return _undefined
    compiler.choice(options["operator"], (*path, "operator"), ("lower", "upper"))
    change = str.lower if options["operator"] == "lower" else str.upper
    if not is_truthy(options.get("value")):
        return _undefined
    of = compiler.value(options["value"], (*path, "value"), keep)

    def value(payload: Any) -> Any:
        found = of(payload)
        return change(found) if isinstance(found, str) else found

    return value


_REPLACE: Final = ("pattern", "replacement", "value", "ignorecase", "global", "pattern2", "replacement2")


def _replace(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    options = compiler.options(given, path, _REPLACE, ("pattern",))
    if options is None:
        return _undefined
    if "value" not in options:
        return compiler.fault(path, "needs value; add it")
    flags = {"ignorecase": options.get("ignorecase"), "global": options.get("global")}
    for name, flag in flags.items():
        if flag is not None and not isinstance(flag, bool):
            return compiler.fault((*path, name), "must be true or false")
    changes = []
    for suffix in ("", "2"):
        pattern, replacement = options.get(f"pattern{suffix}"), options.get(f"replacement{suffix}")
        if not is_truthy(pattern):
            continue
        replacement = "" if replacement is None else replacement
        for name, text in (("pattern", pattern), ("replacement", replacement)):
            if not isinstance(text, str) or len(text) > PATTERN_LIMIT:
                least = 1 if name == "pattern" else 0
                return compiler.fault(
                    (*path, name + suffix), f"must be a text of {least} to {PATTERN_LIMIT} characters; shorten it"
                )
        assert isinstance(pattern, str), "looked at above"
        assert isinstance(replacement, str), "looked at above"
        changes.append(_change(pattern, replacement, flags["ignorecase"] is True, flags["global"] is not False))
    if not is_truthy(options["value"]):
        return _undefined
    of = compiler.value(options["value"], (*path, "value"), 0)

    def value(payload: Any) -> Any:
        found = of(payload)
        if not isinstance(found, str | int | float):
            return ""
        text = text_of(found)
        for change in changes:
            text = change(text)
        return text

    return value


def _change(pattern: str, replacement: str, ignorecase: bool, everywhere: bool) -> Callable[[str], str]:
    """Both are taken as they are: no character of them means anything."""
    count = -1 if everywhere else 1
    if not ignorecase:
        return lambda text: text.replace(pattern, replacement, count)
    found = re.compile(re.escape(pattern), re.IGNORECASE)
    return lambda text: found.sub(lambda _: replacement, text, count=max(0, count))


def _merge(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    options = compiler.options(given, path, ("direction", "objects"), ("direction", "objects"))
    if options is None:
        return _undefined
    direction, objects = options["direction"], options["objects"]
    compiler.choice(direction, (*path, "direction"), ("left", "right"))
    if not isinstance(objects, list | tuple):
        return compiler.fault((*path, "objects"), "must be a list of objects; write [one, two]")
    parts = [compiler.value(one, (*path, "objects", index), max(1, keep)) for index, one in enumerate(objects)]
    if direction == "left":
        parts.reverse()

    def value(payload: Any) -> Any:
        merged: dict[str, Any] = {}
        for part in parts:
            one = part(payload)
            if isinstance(one, dict):
                merged.update(one)
        return merged

    return value if keep else _defined(value)


def _transform(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    options = compiler.options(given, path, ("apply", "mapping"), ("apply", "mapping"))
    if options is None:
        return _undefined
    if not isinstance(options["apply"], dict):
        return compiler.fault((*path, "apply"), "must be an object or a directive that gives one; write one")
    apply = compiler.root(options["apply"], (*path, "apply"))
    mapping = compiler.value(options["mapping"], (*path, "mapping"), keep)
    return lambda payload: mapping(apply(payload))


def _flatten(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    options = compiler.options(given, path, ("value", "separator", "omitArrays"), ("separator",))
    if options is None:
        return _undefined
    separator = compiler.text(options["separator"], (*path, "separator"), _constant)
    of = compiler.value(options.get("value"), (*path, "value"), _EVERY if keep else 0)
    omit = is_truthy(options.get("omitArrays"))

    def value(payload: Any) -> Any:
        by = separator(payload)
        return flattened(of(payload), by, omit_arrays=omit) if isinstance(by, str) else UNDEFINED

    return value


def _json(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    options = compiler.options(given, path, ("mode", "value"), ("mode", "value"))
    if options is None:
        return _undefined
    compiler.choice(options["mode"], (*path, "mode"), ("encode", "decode"))
    of = compiler.value(options["value"], (*path, "value"), 0)

    def encode(payload: Any) -> Any:
        value = of(payload)
        return value if value is UNDEFINED else json_text(value)

    def decode(payload: Any) -> Any:
        value = of(payload)
        try:
            return json_loads(value) if isinstance(value, str) else value
        except ValueError:  # the directive's rule: what is no JSON stays
            return value

    return encode if options["mode"] == "encode" else decode


def _exclude_when_null(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    of = compiler.value(given, path, keep)

    def value(payload: Any) -> Any:
        found = of(payload)
        return UNDEFINED if found is None else without_nulls(found)

    return value


def _liquid(compiler: _Compiler, given: Any, path: Path, keep: int) -> Value:
    if not isinstance(given, str):
        return compiler.fault(path, "must be a text; put it in quotes")
    try:
        return compile_liquid(given)
    except LiquidError as error:
        return compiler.fault(path, str(error))


_DIRECTIVES: Final[Mapping[str, Callable[[_Compiler, Any, Path, int], Value]]] = {
    "@arrayPath": _array_path,
    "@case": _case,
    "@excludeWhenNull": _exclude_when_null,
    "@flatten": _flatten,
    "@if": _if,
    "@json": _json,
    "@liquid": _liquid,
    "@literal": _literal,
    "@merge": _merge,
    "@path": _path,
    "@replace": _replace,
    "@template": _template,
    "@transform": _transform,
}
NAMES: Final = tuple(_DIRECTIVES)


# ── Values ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _undefined(_: Any) -> Any:
    return UNDEFINED


def _constant(value: Any) -> Value:
    return lambda _: value


def _or_null(value: Any) -> Any:
    return None if value is UNDEFINED else value


def _list(items: Sequence[Value]) -> Value:
    return lambda payload: [_or_null(item(payload)) for item in items]


def _object(pairs: Sequence[tuple[str, Value]]) -> Value:
    def value(payload: Any) -> Any:
        made = {}
        for key, of in pairs:
            one = of(payload)
            if one is not UNDEFINED:
                made[key] = one
        return made

    return value


def _open_object(pairs: Sequence[tuple[str, Value]]) -> Value:
    return lambda payload: {key: of(payload) for key, of in pairs}


def _defined(of: Value) -> Value:
    def value(payload: Any) -> Any:
        return {key: one for key, one in of(payload).items() if one is not UNDEFINED}

    return value
