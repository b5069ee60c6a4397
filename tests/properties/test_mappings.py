"""Compiled mappings do what a naive reading of their rules does, and nothing that an event holds makes them raise."""

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.language.mapping import compile_mapping
from pipeline.language.mapping.liquid import LiquidError, compile_liquid

KEYS = st.sampled_from(["a", "b", "c", "length", "0", "1"])
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6)
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)
EVENTS = st.dictionaries(KEYS, VALUES, max_size=4)
PATHS = st.lists(KEYS, max_size=3).map(lambda steps: "$." + ".".join(steps))


def merged(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is merged: objects with keys in common, and whatever else."""
    return st.one_of(st.dictionaries(st.sampled_from("xy"), inner, min_size=1), inner)


def directives(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
        st.lists(inner, max_size=3),
        inner.map(lambda one: {"@literal": one}),
        inner.map(lambda one: {"@excludeWhenNull": one}),
        st.tuples(st.sampled_from(["exists", "blank"]), PATHS, inner, inner).map(
            lambda four: {"@if": {four[0]: {"@path": four[1]}, "then": four[2], "else": four[3]}}
        ),
        st.tuples(PATHS, inner).map(lambda two: {"@arrayPath": list(two)}),
        st.tuples(st.sampled_from(["left", "right"]), st.lists(merged(inner), min_size=1, max_size=3)).map(
            lambda two: {"@merge": {"direction": two[0], "objects": two[1]}}
        ),
        st.tuples(inner, st.booleans()).map(
            lambda two: {"@flatten": {"separator": "_", "value": two[0], "omitArrays": two[1]}}
        ),
        st.tuples(st.dictionaries(KEYS, inner, min_size=1, max_size=2), PATHS).map(
            lambda two: {"@transform": {"apply": two[0], "mapping": {"@path": two[1]}}}
        ),
        PATHS.map(lambda path: {"@case": {"operator": "upper", "value": {"@path": path}}}),
    )


LEAVES = st.one_of(PATHS.map(lambda path: {"@path": path}), st.just({"@path": "$.missing"}), st.just(1), SCALARS)
MAPPINGS = st.recursive(LEAVES, directives, max_leaves=8)

# ── The naive reading ─────────────────────────────────────────────────────────────────────────────────────────────

GONE: Any = type("Gone", (), {"__bool__": lambda self: False})()


def resolve(node: Any, payload: Any) -> Any:
    """As the rules say it: undefined keys stay until the end, where `cleaned` takes them out."""
    if isinstance(node, list):
        return [resolve(one, payload) for one in node]
    if not isinstance(node, dict):
        return node
    name = next((key for key in node if key.startswith("@")), None)
    return RULES[name](node[name], payload) if name else {key: resolve(one, payload) for key, one in node.items()}


def get(path: str, value: Any) -> Any:
    for key in [step for step in path.replace("$.", "", 1).split(".") if step]:
        if not isinstance(value, dict | list) and not value:
            return value
        if isinstance(value, dict):
            value = value.get(key, GONE)
        elif isinstance(value, list | str) and key == "length":
            value = len(value)
        else:
            value = value[int(key)] if isinstance(value, list | str) and key in "01" and int(key) < len(value) else GONE
    return value


def if_(given: Any, payload: Any) -> Any:
    asked = resolve(given.get("exists", given.get("blank")), payload)
    chosen = asked is not GONE and asked is not None
    if "blank" in given and not isinstance(asked, dict):
        text = "".join(map(str, flat(asked))) + "," * (len(asked) - 1) if isinstance(asked, list) else asked
        chosen = bool(text)
    if chosen:
        return resolve(given["then"], payload)
    return resolve(given["else"], payload) if given["else"] or given["else"] in ([], {}) else GONE


def flat(items: Any) -> list[Any]:
    """What the items of a list add to its text: one that is not empty stands for all that is not."""
    return [one for item in items for one in (flat(item) + [","] * (len(item) > 1) if isinstance(item, list) else ["" if item is None else "x" if item != "" else ""])]  # fmt: skip


def array_path(given: Any, payload: Any) -> Any:
    root, shape = get(given[0], payload), given[1]
    if not isinstance(root, dict | list) or not isinstance(shape, dict) or not shape:
        return root
    return [resolve(shape, one) for one in (root if isinstance(root, list) else [root])]


def merge(given: Any, payload: Any) -> Any:
    objects = [one for one in (resolve(part, payload) for part in given["objects"]) if isinstance(one, dict)]
    return {
        key: one for part in (objects if given["direction"] == "right" else objects[::-1]) for key, one in part.items()
    }


def flatten(given: Any, payload: Any) -> Any:
    def walk(prefix: str, value: Any) -> list[tuple[str, Any]]:
        if isinstance(value, list) and not given["omitArrays"]:
            value = {str(index): one for index, one in enumerate(value)}
        if not isinstance(value, dict):
            return [(prefix, value)]
        return [pair for key, one in value.items() for pair in walk(f"{prefix}_{key}", one)]

    value = resolve(given["value"], payload)
    opens = isinstance(value, dict) or (isinstance(value, list) and not given["omitArrays"])
    return {key[1:]: one for key, one in walk("", value)} if opens else value


def no_nulls(value: Any) -> Any:
    return {key: no_nulls(one) for key, one in value.items() if one is not None} if isinstance(value, dict) else value


def exclude(given: Any, payload: Any) -> Any:
    value = resolve(given, payload)
    return GONE if value is None else no_nulls(value)


def cleaned(value: Any) -> Any:
    if isinstance(value, list):
        return [None if one is GONE else cleaned(one) for one in value]
    return {k: cleaned(one) for k, one in value.items() if one is not GONE} if isinstance(value, dict) else value


def case(given: Any, payload: Any) -> Any:
    value = resolve(given["value"], payload)
    return value.upper() if isinstance(value, str) else value


RULES: dict[str, Callable[[Any, Any], Any]] = {
    "@path": get,
    "@literal": resolve,
    "@if": if_,
    "@arrayPath": array_path,
    "@merge": merge,
    "@flatten": flatten,
    "@excludeWhenNull": exclude,
    "@case": case,
    "@transform": lambda given, payload: resolve(given["mapping"], cleaned(resolve(given["apply"], payload))),
}


# ── Laws ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=400, deadline=None)
@given(MAPPINGS, EVENTS)
def test_a_compiled_mapping_does_what_its_rules_say(mapping: Any, event: dict[str, Any]) -> None:
    expected = cleaned(resolve({"v": mapping}, event))
    assert compile_mapping({"v": mapping})(event) == expected


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=12).map(lambda text: "{{a." + text + "}}|{{" + text + "}}"),
    st.text(max_size=10),
    st.text(min_size=1, max_size=3),
    EVENTS,
)
def test_no_text_and_no_event_makes_a_mapping_raise(template: str, path: str, pattern: str, event: Any) -> None:
    compile_mapping(
        {
            "t": {"@template": template},
            "p": {"@path": path},
            "r": {"@replace": {"pattern": pattern, "replacement": "\\1", "value": {"@path": "a"}, "ignorecase": True}},
            "j": {"@json": {"mode": "encode", "value": {"@path": ""}}},
            "d": {"@json": {"mode": "decode", "value": {"@path": "a"}}},
        }
    )(event)


WORDS = st.sampled_from(
    [
        "{{",
        "}}",
        "{%",
        "%}",
        "a",
        "b.c",
        "|",
        ":",
        ",",
        "=",
        "==",
        "'x'",
        "5",
        "0",
        "-1",
        "upcase",
        "append",
        "replace",
        "split",
        "join",
        "slice",
        "date",
        "times",
        "divided_by",
        "json",
        "size",
        "where",
        "strip_html",
        "truncate",
        "if",
        "elsif",
        "else",
        "endif",
        "unless",
        "endunless",
        "assign",
        "capture",
        "endcapture",
        "contains",
        "and",
        "or",
        "raw",
        "endraw",
        "<",
        "'<'",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=14).map(" ".join), EVENTS)
def test_a_template_is_refused_or_renders(template: str, event: Any) -> None:
    try:
        render = compile_liquid(template)
    except LiquidError:
        return
    render(event)


FILTERED = st.lists(
    st.sampled_from(
        [
            "upcase",
            "append: a",
            "replace: a, b",
            "split: ''",
            "join: b",
            "slice: 0, 2",
            "date: '%F %j'",
            "times: a",
            "divided_by: a",
            "json",
            "size",
            "where: 'a'",
            "strip_html",
            "truncate: 3, b",
            "round: a",
            "modulo: b",
            "first",
            "push: a",
            "sum",
            "base64_decode",
            "url_encode",
            "default: a",
        ]
    ),
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(FILTERED, EVENTS)
def test_every_filter_takes_every_value(filters: list[str], event: Any) -> None:
    compile_liquid(" | ".join(["{{ c", *filters]) + " }}")(event)
