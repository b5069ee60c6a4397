"""Filters against a model: a tree is written as an expression, and both must say the same of every event.

The model is the reference's rules read off one by one, without regard to speed; it shares no code with the compiler.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from hypothesis import event as seen
from hypothesis import given
from hypothesis import strategies as st

from pipeline.language.filters import compile_condition
from pipeline.language.globs import glob

# ── Trees ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Literal:
    value: Any


@dataclass(frozen=True)
class Path:
    steps: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    name: str
    given: tuple["Operand", ...]


Operand = Literal | Path | Call


@dataclass(frozen=True)
class Compare:
    sign: str
    left: Operand
    right: Operand


@dataclass(frozen=True)
class Not:
    one: "Tree"


@dataclass(frozen=True)
class Join:
    """Of `and` and `or`."""

    word: str
    left: "Tree"
    right: "Tree"


Tree = Operand | Compare | Not | Join

# ── As text, with no parenthesis more than is needed ──────────────────────────────────────────────────────────────

NUMBER: Final = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
RESERVED: Final = ("true", "false", "null", "and", "or", "in", "all")


def written(tree: Tree, binding: int = 0) -> str:
    match tree:
        case Join(word, left, right):
            own = 1 if word == "and" else 0
            text = f"{written(left, own)} {word} {written(right, own + 1)}"
            return f"({text})" if binding > own else text
        case Not(one):
            text = f"!{written(one, 3)}"
            return f"({text})" if binding == 3 else text
        case Compare(sign, left, right):
            return f"{written(left)} {sign} {written(right)}"
        case Call(name, given_):
            return f"{name}({', '.join(written(one) for one in given_)})"
        case Path(steps):
            text = ".".join(re.sub(r"([^A-Za-z0-9_-])", r"\\\1", step) for step in steps)
            return f"\\{text}" if text in RESERVED or NUMBER.fullmatch(text) else text
        case Literal(value):
            return literal(value)


def literal(value: Any) -> str:
    match value:
        case str():
            return f"'{value}'" if '"' in value else f'"{value}"'
        case list():
            return f"[{', '.join(map(literal, value))}]"
        case float():
            return f"{value:.3f}"
        case _:
            return orjson.dumps(value).decode()


# ── What it means ─────────────────────────────────────────────────────────────────────────────────────────────────


class Unknown(Exception):
    """It cannot be evaluated."""


def says(tree: Tree, event: Mapping[str, Any]) -> bool | None:
    try:
        return truth(meaning(tree, event))
    except Unknown:
        return None


def truth(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise Unknown


def meaning(tree: Tree, event: Mapping[str, Any]) -> Any:
    match tree:
        case Literal(value):
            return value
        case Path(steps):
            found: Any = event
            for step in steps:
                found = found.get(step) if isinstance(found, dict) else None
            return found
        case Call(name, given_):
            return FUNCTIONS[name](*(meaning(one, event) for one in given_))
        case Not(one):
            return not truth(meaning(one, event))
        case Join("and", left, right):
            return truth(meaning(left, event)) and truth(meaning(right, event))
        case Join(_, left, right):
            return truth(meaning(left, event)) or truth(meaning(right, event))
        case Compare(sign, left, right):
            return compared(sign, meaning(left, event), meaning(right, event))


def compared(sign: str, left: Any, right: Any) -> bool:
    if sign in ("=", "!="):
        return equal(left, right) is (sign == "=")
    if sign == "in":
        if right is None:
            return False
        if not isinstance(right, list):
            raise Unknown
        return any(equal(left, one) for one in right)
    if left is None or right is None:
        return False
    if kind(left) != "number" or kind(right) != "number":
        raise Unknown
    return bool({"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[sign])


def equal(left: Any, right: Any) -> bool:
    if kind(left) != kind(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(equal(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, dict):
        return set(left) == set(right) and all(equal(left[name], right[name]) for name in left)
    return bool(left == right)


def kind(value: Any) -> str:
    names = {type(None): "null", bool: "bool", int: "number", float: "number", str: "string", list: "list"}
    return names.get(type(value), "object")


def text(of: Callable[..., Any], default: Any) -> Callable[..., Any]:
    """A function of texts, with what it gives when one of them is null."""

    def function(*values: Any) -> Any:
        if None in values:
            return default
        if not all(isinstance(one, str) for one in values):
            raise Unknown
        return of(*values)

    return function


def length(value: Any) -> int:
    if kind(value) not in ("null", "string", "list"):
        raise Unknown
    return len(value.encode() if isinstance(value, str) else value or ())


def number(value: Any) -> float:
    if kind(value) == "number":
        return value  # type: ignore[no-any-return]  # told by the line above
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?", value):
        return float(value)
    raise Unknown


def convert(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def function(value: Any) -> Any:
        if isinstance(value, dict):
            raise Unknown
        return of(value)

    return function


def globbed(whole: str, pattern: str) -> bool:
    """Without sets and escapes, of which the patterns below have none."""
    if not pattern:
        return not whole
    if pattern[0] == "*":
        return globbed(whole, pattern[1:]) or (whole != "" and globbed(whole[1:], pattern))
    return whole != "" and pattern[0] in ("?", whole[0]) and globbed(whole[1:], pattern[1:])


FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "contains": text(lambda whole, part: part in whole, False),
    "match": text(globbed, False),
    "length": length,
    "lowercase": text(str.lower, None),
    "uppercase": text(str.upper, None),
    "snakecase": text(lambda one: one.replace(" ", "_"), None),
    "kebabcase": text(lambda one: one.replace(" ", "-"), None),
    "typeof": kind,
    "bool": convert(lambda one: one not in ("", "false") if isinstance(one, str) else bool(one)),
    "string": convert(lambda one: one if isinstance(one, str) else orjson.dumps(one).decode()),
    "number": number,
}

# ── Patterns ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Set:
    negated: bool
    ranges: tuple[tuple[str, str], ...]


Pattern = Sequence[str | Set | None]  # a character, a set, or None for any run; "" is one character


def pattern_text(pattern: Pattern) -> str:
    def one(part: str | Set | None) -> str:
        match part:
            case None:
                return "*"
            case "":
                return "?"
            case str():
                return re.sub(r"([*?\[\]\\^-])", r"\\\1", part)
            case Set(negated, ranges):
                return f"[{'^' if negated else ''}{''.join(f'{one(a)}-{one(b)}' for a, b in ranges)}]"

    return "".join(map(one, pattern))


def fits(whole: str, pattern: Pattern) -> bool:
    if not pattern:
        return not whole
    first, rest = pattern[0], pattern[1:]
    if first is None:
        return any(fits(whole[place:], rest) for place in range(len(whole) + 1))
    if not whole:
        return False
    if isinstance(first, Set):
        taken = any(low <= whole[0] <= high for low, high in first.ranges) is not first.negated
    else:
        taken = first in ("", whole[0])
    return taken and fits(whole[1:], rest)


characters = st.sampled_from("aab*?[]^-\\\n")
ranges = st.lists(st.tuples(characters, characters).map(lambda two: (min(two), max(two))), min_size=1, max_size=2)
sets = st.builds(Set, st.booleans(), ranges.map(tuple))
patterns = st.lists(characters | st.none() | st.just("") | sets, max_size=5)


@given(st.text("aab*]\\\n", max_size=4), patterns)
def test_a_pattern_matches_what_its_parts_do(whole: str, pattern: Pattern) -> None:
    said = glob(pattern_text(pattern))(whole) is not None
    seen(f"matches {said}")
    assert said is fits(whole, pattern)


# ── Any of them ───────────────────────────────────────────────────────────────────────────────────────────────────

NAMES: Final = ("a", "b", "true", "and", "all", "order_id", "1", "-2", "2.5", "x y", "é", "a.b", "\\", "'")
texts = st.text("aB *?'", max_size=4) | st.sampled_from(["1", "-2.5", "false", "true", "é"]) | st.text('a"', max_size=2)
halves = st.integers(-4, 4).map(lambda one: one / 2)
scalars = st.none() | st.booleans() | st.integers(-2, 2) | halves | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=5,
)
events = st.dictionaries(st.sampled_from(NAMES), values, max_size=6)
literals = (scalars | st.lists(scalars, max_size=3)).map(Literal)
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda steps: Path(tuple(steps)))


def calls(inner: st.SearchStrategy[Operand]) -> st.SearchStrategy[Operand]:
    one = st.sampled_from([name for name in FUNCTIONS if name not in ("contains", "match")])
    two: Sequence[str] = ("contains", "match")
    patterns = st.text("aB*?", max_size=5).map(Literal)
    return st.builds(lambda name, only: Call(name, (only,)), one, inner) | st.builds(
        lambda name, first, second: Call(name, (first, second)), st.sampled_from(two), inner, paths | patterns
    )


operands: st.SearchStrategy[Operand] = st.recursive(paths | paths | literals, calls, max_leaves=3)
compares = st.builds(Compare, st.sampled_from(["=", "!=", "<", "<=", ">", ">=", "in"]), operands, operands)
trees: st.SearchStrategy[Tree] = st.recursive(
    compares | compares | operands,
    lambda inner: inner.map(Not) | st.builds(Join, st.sampled_from(["and", "or"]), inner, inner),
    max_leaves=5,
)


@given(trees, events)
def test_an_expression_says_what_its_tree_means(tree: Tree, event: dict[str, Any]) -> None:
    said = says(tree, event)
    seen(f"says {said}")
    assert compile_condition(written(tree))(event) is said


@given(trees, events, st.text(" \t\n", max_size=3))
def test_white_space_around_signs_and_words_means_nothing(tree: Tree, event: dict[str, Any], blank: str) -> None:
    """Outside texts, of which a part might otherwise be blank."""
    words = re.split(r"""("[^"]*"|'[^']*')""", written(tree))
    spaced = "".join(
        one if index % 2 else re.sub(r"(?<!\\)([()\[\],])", rf"{blank}\1{blank}", one)
        for index, one in enumerate(words)
    )
    assert compile_condition(spaced)(event) is says(tree, event)
