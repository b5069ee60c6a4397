"""The directives of mappings, case by case: as the reference has them, unless a case says how we differ."""

from typing import Any

import pytest

from pipeline.language.mapping import MappingError, compile_mapping

EVENT: dict[str, Any] = {
    "a": 1,
    "n": None,
    "f": False,
    "s": "Hi",
    "o": {"x": {"y": 2}, "z": None},
    "l": [{"k": 1}, {"k": 2}],
    "e": "",
    "w": {"a b": 3, "c.d": 4},
    "t": ["p", "q"],
    "zero": 0,
    "none": [],
    "d": 2.5,
    "whole": 3.0,
    "big": 12345678901234567890123,
    "j": '{"k": [1, 2]}',
    "at": "o.x.y",
}


class REMOVED:
    """Stands for a key that is not there; its name, in those of tests, is the same in every process."""


def made(directive: Any) -> Any:
    """What a directive gives as a key of an object."""
    return compile_mapping({"v": directive})(EVENT).get("v", REMOVED)


VECTORS: list[tuple[Any, Any]] = [
    ({"@path": "$.o.x.y"}, 2),
    ({"@path": "$.n.q"}, None),
    ({"@path": "$.q"}, REMOVED),
    ({"@template": "{{s}}-{{a}}-{{q}}"}, "Hi-1-"),
    ({"@if": {"exists": {"@path": "$.n"}, "then": 1, "else": 2}}, 2),
    ({"@if": {"exists": {"@path": "$.f"}, "then": "y", "else": "n"}}, "y"),
    ({"@if": {"blank": {"@path": "$.f"}, "then": "y", "else": "n"}}, "n"),
    ({"@if": {"blank": {"@path": "$.e"}, "then": "y", "else": ""}}, REMOVED),
    ({"@arrayPath": ["$.l", {"v": {"@path": "$.k"}}]}, [{"v": 1}, {"v": 2}]),
    ({"@arrayPath": ["$.o.x", {"v": {"@path": "$.y"}}]}, [{"v": 2}]),
    ({"@case": {"operator": "upper", "value": {"@path": "$.s"}}}, "HI"),
    ({"@case": {"operator": "upper", "value": {"@path": "$.a"}}}, 1),
    ({"@replace": {"pattern": "1", "replacement": "one", "value": {"@path": "$.a"}}}, "one"),
    ({"@replace": {"pattern": ".", "replacement": "", "value": "a.b.c"}}, "abc"),
    ({"@merge": {"direction": "left", "objects": [{"p": 1}, {"p": 2, "q": 3}]}}, {"p": 1, "q": 3}),
    ({"@flatten": {"separator": "_", "value": {"@path": "$.o"}}}, {"x_y": 2, "z": None}),
    ({"@flatten": {"separator": ".", "value": {"@path": "$.l"}}}, {"0.k": 1, "1.k": 2}),
    ({"@json": {"mode": "decode", "value": "{bad"}}, "{bad"),
    ({"@excludeWhenNull": {"@path": "$.o"}}, {"x": {"y": 2}}),
    ({"@path": "$.l[1].k"}, 2),
    ({"@path": "$.a.q"}, REMOVED),
    ({"@path": "$.e.q"}, ""),
    ({"@liquid": "{{s | upcase}}{{n}}"}, "HI"),
]
"""Checked against the published implementation."""

DIFFERENT: list[tuple[Any, Any]] = [
    ({"@template": "{{o}}"}, '{"x":{"y":2},"z":null}'),  # there: [object Object]
    ({"@replace": {"pattern": "H", "replacement": "$&$&", "value": {"@path": "$.s"}}}, "$&$&i"),  # there: HHi
]

FURTHER: list[tuple[Any, Any]] = [
    # @path
    ({"@path": "$."}, EVENT),
    ({"@path": "."}, EVENT),
    ({"@path": ""}, EVENT),
    ({"@path": "o.x.y"}, 2),
    ({"@path": "$.w['a b']"}, 3),
    ({"@path": '$.w["c.d"]'}, 4),
    ({"@path": "$.f.q"}, False),
    ({"@path": "$.zero.q"}, 0),
    ({"@path": "$.none.q"}, REMOVED),
    ({"@path": "$.t.1"}, "q"),
    ({"@path": "$.t[2]"}, REMOVED),
    ({"@path": "$.t[01]"}, REMOVED),
    ({"@path": "$.t.length"}, 2),
    ({"@path": "$.s[0]"}, "H"),
    ({"@path": "[].."}, REMOVED),
    ({"@path": {"@path": "$.at"}}, 2),
    ({"@path": {"@path": "$.a"}}, REMOVED),
    ({"@path": "$.a", "_metadata": {"label": "A"}}, 1),
    # @template
    ({"@template": "{{{s}}}|{{ a }}|{{$.s}}"}, "Hi|1|Hi"),
    ({"@template": ""}, ""),
    ({"@template": "plain"}, "plain"),
    ({"@template": "{{n}}{{f}}{{zero}}"}, "false0"),
    ({"@template": "{{d}} {{whole}} {{big}}"}, "2.5 3 12345678901234567890123"),
    ({"@template": "{{t}}"}, "p,q"),
    ({"@template": "{{l}}"}, '{"k":1},{"k":2}'),
    ({"@template": "{a}} {{"}, "{a}} {{"),
    ({"@template": {"@path": "$.s"}}, "Hi"),
    # @literal and raw values
    ({"@literal": ""}, ""),
    ({"@literal": {"p": {"@path": "$.a"}, "q": {"@path": "$.q"}}}, {"p": 1}),
    ("", ""),
    (None, None),
    ([1, {"@path": "$.q"}, {"@path": "$.a"}], [1, None, 1]),
    ({"p": {"q": {"@path": "$.q"}}}, {"p": {}}),
    # @if
    ({"@if": {"exists": {"@path": "$.q"}, "then": 1}}, REMOVED),
    ({"@if": {"exists": {"@path": "$.a"}, "else": 1}}, REMOVED),
    ({"@if": {"exists": {"@path": "$.a"}, "then": ""}}, ""),
    ({"@if": {"exists": {"@path": "$.a"}, "then": None}}, None),
    ({"@if": {"exists": {"@path": "$.q"}, "then": 1, "else": 0}}, REMOVED),
    ({"@if": {"exists": {"@path": "$.q"}, "then": 1, "else": False}}, REMOVED),
    ({"@if": {"exists": {"@path": "$.q"}, "then": 1, "else": {}}}, {}),
    ({"@if": {"exists": {"@path": "$.q"}, "blank": {"@path": "$.a"}, "then": 1, "else": 2}}, 2),
    ({"@if": {"blank": {"@path": "$.zero"}, "then": "y", "else": "n"}}, "n"),
    ({"@if": {"blank": {"@path": "$.none"}, "then": "y", "else": "n"}}, "n"),
    ({"@if": {"blank": {"@path": "$.t"}, "then": "y", "else": "n"}}, "y"),
    ({"@if": {"blank": {"@path": "$.o"}, "then": "y", "else": "n"}}, "y"),
    # @arrayPath
    ({"@arrayPath": ["$.l"]}, EVENT["l"]),
    ({"@arrayPath": ["$.l", {}]}, EVENT["l"]),
    ({"@arrayPath": ["$.o.x"]}, {"y": 2}),
    ({"@arrayPath": ["$.s", {"v": {"@path": "$.k"}}]}, "Hi"),
    ({"@arrayPath": ["$.q", {"v": {"@path": "$.k"}}]}, REMOVED),
    ({"@arrayPath": ["$.l", {"@path": "$.k"}]}, [1, 2]),
    ({"@arrayPath": ["$.l", {"@path": "$.q"}]}, [None, None]),
    ({"@arrayPath": ["$.t", {"v": {"@path": "$."}}]}, [{"v": "p"}, {"v": "q"}]),
    ({"@arrayPath": [{"@path": "$.l"}, {"v": {"@path": "$.k"}}]}, [{"v": 1}, {"v": 2}]),
    # @case
    ({"@case": {"operator": "lower", "value": "ÄB"}}, "äb"),
    ({"@case": {"operator": "lower", "value": {"@path": "$.q"}}}, REMOVED),
    ({"@case": {"operator": "lower", "value": ""}}, REMOVED),
    ({"@case": {"operator": "lower"}}, REMOVED),
    # @replace
    ({"@replace": {"pattern": "i", "replacement": "o", "value": "iIi"}}, "oIo"),
    ({"@replace": {"pattern": "i", "replacement": "o", "value": "iIi", "ignorecase": True}}, "ooo"),
    ({"@replace": {"pattern": "i", "replacement": "o", "value": "iIi", "global": False}}, "oIi"),
    ({"@replace": {"pattern": "I", "replacement": "o", "value": "iI", "global": False, "ignorecase": True}}, "oI"),
    ({"@replace": {"pattern": "a", "replacement": "b", "value": "a", "pattern2": "b", "replacement2": "c"}}, "c"),
    ({"@replace": {"pattern": "a", "value": "ab", "pattern2": "b"}}, ""),
    ({"@replace": {"pattern": "a", "replacement": None, "value": "ab"}}, "b"),
    ({"@replace": {"pattern": "x", "value": {"@path": "$.f"}}}, "false"),
    ({"@replace": {"pattern": "x", "value": {"@path": "$.n"}}}, ""),
    ({"@replace": {"pattern": "x", "value": {"@path": "$.o"}}}, ""),
    ({"@replace": {"pattern": "x", "value": {"@path": "$.q"}}}, ""),
    ({"@replace": {"pattern": "x", "value": ""}}, REMOVED),
    # @merge
    ({"@merge": {"direction": "right", "objects": [{"p": 1}, {"p": 2, "q": 3}]}}, {"p": 2, "q": 3}),
    ({"@merge": {"direction": "right", "objects": [{"@path": "$.o"}, {"z": 1}]}}, {"x": {"y": 2}, "z": 1}),
    ({"@merge": {"direction": "right", "objects": [{"p": 1}, {"p": {"@path": "$.q"}}]}}, {}),
    ({"@merge": {"direction": "left", "objects": [{"p": 1}, {"p": {"@path": "$.q"}}]}}, {"p": 1}),
    (
        {"@merge": {"direction": "right", "objects": [{"p": {"r": 1}}, {"p": {"s": {"@path": "$.q"}}}]}},
        {"p": {}},
    ),
    (
        {
            "@merge": {
                "direction": "right",
                "objects": [{"p": 1}, {"@if": {"exists": "x", "then": {"p": {"@path": "$.q"}}}}],
            }
        },
        {},
    ),
    (
        {
            "@merge": {
                "direction": "right",
                "objects": [
                    {"p_r": 1},
                    {"@flatten": {"separator": "_", "value": {"p": {"r": {"@path": "$.q"}}}}},
                ],
            }
        },
        {},
    ),
    ({"@merge": {"direction": "right", "objects": [{"p": 1}, {"@path": "$.q"}, {"@path": "$.n"}]}}, {"p": 1}),
    # @transform
    (
        {
            "@transform": {
                "apply": {"u": {"@path": "$.o.x"}},
                "mapping": {"v": {"@path": "$.u.y"}, "a": {"@path": "$.a"}},
            }
        },
        {"v": 2},
    ),
    # @flatten
    ({"@flatten": {"separator": ".", "value": {"@path": "$.o"}, "omitArrays": True}}, {"x.y": 2, "z": None}),
    ({"@flatten": {"separator": ".", "value": {"p": {"@path": "$.t"}}, "omitArrays": True}}, {"p": ["p", "q"]}),
    ({"@flatten": {"separator": ".", "value": {"p": {"@path": "$.t"}}}}, {"p.0": "p", "p.1": "q"}),
    ({"@flatten": {"separator": ".", "value": {"p": {}, "q": [], "r": 1}}}, {"r": 1}),
    ({"@flatten": {"separator": ".", "value": {"@path": "$.q"}}}, REMOVED),
    ({"@flatten": {"separator": {"@path": "$.s"}, "value": {"@path": "$.o"}}}, {"xHiy": 2, "z": None}),
    ({"@flatten": {"separator": {"@path": "$.a"}, "value": {"@path": "$.o"}}}, REMOVED),
    # @json
    ({"@json": {"mode": "encode", "value": {"@path": "$.o"}}}, '{"x":{"y":2},"z":null}'),
    ({"@json": {"mode": "encode", "value": {"@path": "$.s"}}}, '"Hi"'),
    ({"@json": {"mode": "encode", "value": {"@path": "$.q"}}}, REMOVED),
    ({"@json": {"mode": "decode", "value": {"@path": "$.j"}}}, {"k": [1, 2]}),
    ({"@json": {"mode": "decode", "value": {"@path": "$.a"}}}, 1),
    # @excludeWhenNull
    ({"@excludeWhenNull": {"@path": "$.n"}}, REMOVED),
    ({"@excludeWhenNull": {"@path": "$.q"}}, REMOVED),
    ({"@excludeWhenNull": {"p": {"q": None, "r": [None, {"s": None}]}, "t": None}}, {"p": {"r": [None, {"s": None}]}}),
    ({"@excludeWhenNull": {"@path": "$.e"}}, ""),
]


@pytest.mark.parametrize(("directive", "expected"), [*VECTORS, *DIFFERENT, *FURTHER], ids=repr)
def test_a_directive_gives(directive: Any, expected: Any) -> None:
    assert made(directive) == expected


def test_a_root_directive_is_filled_with_all_other_keys() -> None:
    mapping = {
        "__segment_internal_directive": {
            "@transform": {"apply": {"p": {"@flatten": {"separator": "_", "value": {"@path": "$.o"}}}}}
        },
        "flat": {"@path": "$.p.x_y"},
        "all": {"@path": "$.p"},
    }
    assert compile_mapping(mapping)(EVENT) == {"flat": 2, "all": {"x_y": 2, "z": None}}


def test_a_whole_mapping_may_be_a_directive() -> None:
    assert compile_mapping({"@path": "$.o.x"})(EVENT) == {"y": 2}
    assert compile_mapping({"@path": "$.q"})(EVENT) is None


@pytest.mark.parametrize(
    ("mapping", "faults"),
    [
        ({"a": {"@path": "x", "@case": {}}}, ["$.a: has @case beside @path; a directive stands alone"]),
        ({"a": {"@path": "x", "b": 1}}, ["$.a: has b beside @path; a directive stands alone"]),
        ({"a": {"@pth": "x"}}, ["$.a: unknown directive @pth; did you mean @path?"]),
        ({"a": {"@path": 1}}, ["$.a.@path: must be a text or a directive; put it in quotes"]),
        ({"a": {"@if": {"then": 1}}}, ["$.a.@if: needs exists or blank; add the value that decides"]),
        ({"a": {"@if": 1}}, ["$.a.@if: must be an object with exists, blank, then, else; write one"]),
        (
            {"a": {"@case": {"operator": "title", "value": "x"}}},
            ["$.a.@case.operator: must be lower or upper; choose one"],
        ),
        ({"a": {"@replace": {"value": "x"}}}, ["$.a.@replace: needs pattern; add it"]),
        (
            {"a": {"@replace": {"value": "x", "pattern": "12345678901"}}},
            ["$.a.@replace.pattern: must be a text of 1 to 10 characters; shorten it"],
        ),
        ({"a": {"@merge": {"objects": [{}]}}}, ["$.a.@merge: needs direction; add it"]),
        (
            {"a": {"@merge": {"direction": "up", "objects": {}}}},
            [
                "$.a.@merge.direction: must be left or right; choose one",
                "$.a.@merge.objects: must be a list of objects; write [one, two]",
            ],
        ),
        ({"a": {"@flatten": {"value": 1}}}, ["$.a.@flatten: needs separator; add it"]),
        ({"a": {"@json": {"mode": "both", "value": 1}}}, ["$.a.@json.mode: must be encode or decode; choose one"]),
        ({"a": {"@arrayPath": "$.l"}}, ["$.a.@arrayPath: must be a list of a path and a shape; write [path, {…}]"]),
        (
            {"a": [{"@path": 1}], "b": {"@json": {"mode": "encode"}}},
            [
                "$.a[0].@path: must be a text or a directive; put it in quotes",
                "$.b.@json: needs value; add it",
            ],
        ),
        ({"a": {"@transform": {"apply": "x", "mapping": {"b": 1}}}}, ["$.a.@transform.apply: must be an object or a directive that gives one; write one"]),
        ({"__segment_internal_directive": {"@path": "$."}}, ["$.__segment_internal_directive.@path: must be an object, whose mapping is all other keys; write one"]),
    ],
    ids=repr,
)  # fmt: skip
def test_every_fault_of_a_mapping_is_named_with_its_place_and_a_remedy(mapping: Any, faults: list[str]) -> None:
    with pytest.raises(MappingError) as raised:
        compile_mapping(mapping)
    assert [str(one) for one in raised.value.faults] == faults


def test_a_mapping_that_nests_without_end_is_refused() -> None:
    mapping: Any = {}
    mapping["a"] = mapping
    with pytest.raises(MappingError, match="nested deeper than 50; write it flatter"):
        compile_mapping(mapping)
