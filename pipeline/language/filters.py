"""Filters over events: the reference's query language, compiled once.

Its grammar and its rules for null, types and errors are those of the reference; what that leaves open is decided in
`pipeline/language/README.md`.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from pipeline.language.globs import glob
from pipeline.language.values import same, text_of, truth_of, type_of

Filter = Callable[[Mapping[str, Any]], bool]
"""Whether an event, as destinations get it, passes. An expression that cannot be evaluated for an event lets it not pass: filters
guard what must not leave."""

Condition = Callable[[Mapping[str, Any]], bool | None]
"""Whether an expression is true of an event; None when it cannot be evaluated for it."""

LENGTH_LIMIT: Final = 5_120  # bytes of an expression
DEPTH_LIMIT: Final = 50  # of parentheses and calls
DIGITS_LIMIT: Final = 300
PATTERN_LIMIT: Final = 256  # characters of a pattern that an event holds, which is nobody's whom we trust


class FilterError(ValueError):
    """An expression that is none: what is wrong, where (`place`, counted from 0), and what would be right."""

    def __init__(self, what: str, place: int) -> None:
        super().__init__(f"{what} (character {place + 1})")
        self.place = place


def compile_filter(text: str) -> Filter:
    """The filter that an expression says. FilterError when it is none."""
    condition = compile_condition(text)
    return everything if condition is everything else lambda event: condition(event) is True


def compile_condition(text: str) -> Condition:
    """As `compile_filter`, for whom false and what cannot be evaluated are not the same. `everything` for `all`."""
    if len(text.encode()) > LENGTH_LIMIT:
        raise FilterError(f"the expression is longer than {LENGTH_LIMIT} bytes; make it two filters", 0)
    if text.strip() == "all":
        return everything
    return _condition(_Parser(text).whole())


def _condition(value: "_Value") -> Condition:
    def condition(event: Mapping[str, Any]) -> bool | None:
        try:
            return _boolean(value(event))
        except (_Unevaluable, RecursionError):
            return None

    return condition


class Explanation(NamedTuple):
    """What an expression says of an event and why: each comparison or lone value in it, and what is at its paths."""

    said: bool | None
    parts: Sequence[tuple[str, bool | None]]
    values: Mapping[str, Any]


def explaining(text: str) -> Callable[[Mapping[str, Any]], Explanation]:
    """For people who ask why an event passes or not. FilterError when the text is no expression."""
    condition = compile_condition(text)
    parser = _Parser(text)
    if condition is not everything:
        parser.whole()
    parts = [(part, _condition(value)) for part, value in parser.parts]

    def explain(event: Mapping[str, Any]) -> Explanation:
        values = {path: value(event) for path, value in parser.paths.items()}
        return Explanation(condition(event), [(part, says(event)) for part, says in parts], values)

    return explain


def everything(_: Mapping[str, Any]) -> bool:
    """The expression `all`."""
    return True


# ── Words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Word(NamedTuple):
    kind: str  # number, string, path, sign, end
    text: str
    place: int


_WORDS: Final = re.compile(
    r"""[ \t\r\n]*(?:
      (?P<number>[+-]?[0-9]+(?:\.[0-9]+)?(?![A-Za-z0-9_.\\-]))
    | (?P<string>"[^"]*"|'[^']*')
    | (?P<path>(?:[A-Za-z0-9_-]|\\.)+(?:\.(?:[A-Za-z0-9_-]|\\.)+)*)
    | (?P<sign>!=|>=|<=|[=<>!()\[\],])
    )""",
    re.VERBOSE | re.DOTALL,
)
_BLANK: Final = " \t\r\n"


def _words(text: str) -> Iterator[_Word]:
    place = 0
    while text[place:].strip(_BLANK):
        found = _WORDS.match(text, place)
        if found is None:
            start = place + len(text[place:]) - len(text[place:].lstrip(_BLANK))
            if text[start] in "\"'":
                raise FilterError("a string has no end; close it with the quote that opens it", start)
            raise FilterError(f"unexpected {text[start]}; a path escapes it as \\{text[start]}", start)
        kind = found.lastgroup or ""
        yield _Word(kind, found[kind], found.start(kind))
        place = found.end()
    yield _Word("end", "the end", len(text))


# ── Expressions ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Unevaluable(Exception):
    """The event's values are not of the types that the expression needs."""


_Value = Callable[[Mapping[str, Any]], Any]
_WORDED: Final[dict[str, Any]] = {"true": True, "false": False, "null": None}
_RESERVED: Final = frozenset({*_WORDED, "and", "or", "in"})
_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


class _Parser:
    """Reads words into functions, from left to right."""

    def __init__(self, text: str) -> None:
        self.parts: list[tuple[str, _Value]] = []  # what is not joined of others, as it is written
        self.paths: dict[str, _Value] = {}
        self._text = text
        self._words = list(_words(text))
        self._next = 0
        self._depth = 0

    def whole(self) -> _Value:
        value = self._either()
        if self._word.kind != "end":
            self._wrong("and, or, or the end")
        return value

    @property
    def _word(self) -> _Word:
        return self._words[self._next]

    def _wrong(self, expected: str) -> NoReturn:
        raise FilterError(f"expected {expected}, found {self._word.text}", self._word.place)

    def _take(self, text: str, kind: str = "sign") -> bool:
        taken = self._word.kind == kind and self._word.text == text
        self._next += taken
        return taken

    def _need(self, sign: str) -> None:
        if not self._take(sign):
            self._wrong(f"'{sign}'")

    def _either(self) -> _Value:
        value = self._both()
        while self._take("or", "path"):
            value = _or(value, self._both())
        return value

    def _both(self) -> _Value:
        value = self._negated()
        while self._take("and", "path"):
            value = _and(value, self._negated())
        return value

    def _negated(self) -> _Value:
        if self._take("!"):
            return _not(self._single())
        return self._single()

    def _single(self) -> _Value:
        if self._take("("):
            with self._deeper():
                value = self._either()
            self._need(")")
            return value
        return self._comparison()

    def _deeper(self) -> "_Parser":
        if self._depth == DEPTH_LIMIT:
            raise FilterError(f"nested deeper than {DEPTH_LIMIT}; write it flatter", self._word.place)
        return self

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1

    def _comparison(self) -> _Value:
        start = self._word.place
        value = self._compared()
        last = self._words[self._next - 1]
        self.parts.append((self._text[start : last.place + len(last.text)], value))
        return value

    def _compared(self) -> _Value:
        left = self._operand()
        for sign in ("=", "!="):
            if self._take(sign):
                equal = _equal(left, self._operand())
                return equal if sign == "=" else _not(equal)
        for sign, holds in _ORDERS.items():
            if self._take(sign):
                return _ordered(left, self._operand(), holds)
        if self._take("in", "path"):
            return _member(left, self._operand())
        return left.value

    def _operand(self) -> "_Operand":
        if self._take("["):
            items = self._several("]", self._literal)
            return _constant(items)
        word = self._word
        if word.kind in ("number", "string") or (word.kind == "path" and word.text in _WORDED):
            return _constant(self._literal())
        if word.kind != "path" or word.text in _RESERVED:
            self._wrong("a path, a value or a function")
        self._next += 1
        if self._take("("):
            return self._call(word)
        value = self.paths[word.text] = _path(word.text)
        return _Operand(value)

    def _literal(self) -> Any:
        kind, text, place = self._word
        if kind not in ("number", "string") and not (kind == "path" and text in _WORDED):
            self._wrong("a value")
        self._next += 1
        if kind == "string":
            return text[1:-1]
        if kind == "path":
            return _WORDED[text]
        if len(text) > DIGITS_LIMIT:
            raise FilterError(f"a number of more than {DIGITS_LIMIT} characters", place)
        return float(text) if "." in text else int(text)

    def _several(self, end: str, one: Callable[[], Any]) -> list[Any]:
        found: list[Any] = []
        if self._take(end):
            return found
        while True:
            found.append(one())
            if self._take(end):
                return found
            self._need(",")

    def _call(self, name: _Word) -> "_Operand":
        function = _FUNCTIONS.get(name.text)
        if function is None:
            raise FilterError(f"unknown function {name.text}; there are {', '.join(sorted(_FUNCTIONS))}", name.place)
        with self._deeper():
            given = self._several(")", self._operand)
        if len(given) != function.takes:
            raise FilterError(f"{name.text} takes {function.takes} values, not {len(given)}", name.place)
        if name.text == "match" and given[1].constant:
            try:
                return _Operand(_matches(given[0].value, given[1].value({})))
            except ValueError as error:
                raise FilterError(str(error), name.place) from error
        return _Operand(_called(function.of, [one.value for one in given]))


class _Operand(NamedTuple):
    value: _Value
    constant: bool = False


def _constant(value: Any) -> _Operand:
    return _Operand(lambda _: value, constant=True)


def steps_of(path: str) -> list[str]:
    """The names of a dotted path, none for an empty one. A backslash makes the next character a part of its name."""
    return [re.sub(r"\\(.)", r"\1", step, flags=re.DOTALL) for step in re.findall(r"(?:[^\\.]|\\.)+", path, re.DOTALL)]


def _path(text: str) -> _Value:
    """The value at a dotted path; null where there is none."""
    steps = steps_of(text)
    if len(steps) == 1:
        (only,) = steps
        return lambda event: event.get(only)
    *above, last = steps

    def value(event: Mapping[str, Any]) -> Any:
        found: Any = event
        for step in above:
            found = found.get(step)
            if type(found) is not dict:
                return None
        return found.get(last)

    return value


# ── Operators ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _boolean(value: Any) -> bool:
    """null counts as false."""
    if value is True:
        return True
    if value is False or value is None:
        return False
    raise _Unevaluable


def _and(left: _Value, right: _Value) -> _Value:
    return lambda event: _boolean(left(event)) and _boolean(right(event))


def _or(left: _Value, right: _Value) -> _Value:
    return lambda event: _boolean(left(event)) or _boolean(right(event))


def _not(one: _Value) -> _Value:
    return lambda event: not _boolean(one(event))


def _equal(left: _Operand, right: _Operand) -> _Value:
    if left.constant:
        left, right = right, left
    of, other = left.value, right.value
    if right.constant and type(text := other({})) is str:
        return lambda event: of(event) == text
    return lambda event: same(of(event), other(event))


def _ordered(left: _Operand, right: _Operand, holds: Callable[[Any, Any], bool]) -> _Value:
    """Of numbers; null is neither more nor less than anything."""
    first, second = left.value, right.value

    def value(event: Mapping[str, Any]) -> bool:
        a, b = first(event), second(event)
        if a is None or b is None:
            return False
        if type(a) not in _NUMBERS or type(b) not in _NUMBERS:
            raise _Unevaluable
        return holds(a, b)

    return value


_NUMBERS: Final = frozenset({int, float})


def _member(left: _Operand, right: _Operand) -> _Value:
    of, among = left.value, right.value
    if right.constant and type(items := among({})) is list and all(type(one) is str for one in items):
        texts = frozenset(items)

        def quick(event: Mapping[str, Any]) -> bool:
            value = of(event)
            return type(value) is str and value in texts

        return quick

    def value(event: Mapping[str, Any]) -> bool:
        items, one = among(event), of(event)
        if items is None:
            return False
        if type(items) is not list:
            raise _Unevaluable
        return any(same(one, item) for item in items)

    return value


# ── Functions ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Function(NamedTuple):
    takes: int
    of: Callable[..., Any]


def _called(function: Callable[..., Any], given: list[_Value]) -> _Value:
    if len(given) == 1:
        (only,) = given
        return lambda event: function(only(event))
    first, second = given
    return lambda event: function(first(event), second(event))


def _matches(of: _Value, pattern: Any) -> _Value:
    if not isinstance(pattern, str):
        raise ValueError("match takes a pattern in quotes")
    found = glob(pattern)

    def value(event: Mapping[str, Any]) -> bool:
        text = of(event)
        if type(text) is str:
            return found(text) is not None
        if text is None:
            return False
        raise _Unevaluable

    return value


def _match(text: Any, pattern: Any) -> bool:
    if text is None or pattern is None:
        return False
    if type(text) is not str or type(pattern) is not str or len(pattern) > PATTERN_LIMIT:
        raise _Unevaluable
    try:
        return glob(pattern)(text) is not None
    except ValueError as error:
        raise _Unevaluable from error


def _contains(text: Any, part: Any) -> bool:
    if text is None or part is None:
        return False
    if type(text) is not str or type(part) is not str:
        raise _Unevaluable
    return part in text


def _length(value: Any) -> int:
    if value is None:
        return 0
    if type(value) is str:
        return len(value.encode("utf-8", "surrogatepass"))
    if type(value) is list:
        return len(value)
    raise _Unevaluable


def _written(change: Callable[[str], str]) -> Callable[[Any], str | None]:
    def value(text: Any) -> str | None:
        if text is None:
            return None
        if type(text) is not str:
            raise _Unevaluable
        return change(text)

    return value


def _number(value: Any) -> int | float:
    if type(value) in _NUMBERS:
        return value  # type: ignore[no-any-return]  # told by the line above
    if type(value) is str and re.fullmatch(r"[+-]?[0-9]{1,300}(?:\.[0-9]+)?", value):
        return float(value) if "." in value else int(value)
    raise _Unevaluable


def _converted(of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def value(given: Any) -> Any:
        if type(given) is dict:
            raise _Unevaluable
        try:
            return of(given)
        except ValueError as error:  # half a character, which no JSON can be made of
            raise _Unevaluable from error

    return value


_FUNCTIONS: Final[Mapping[str, _Function]] = {
    "contains": _Function(2, _contains),
    "match": _Function(2, _match),
    "length": _Function(1, _length),
    "lowercase": _Function(1, _written(str.lower)),
    "uppercase": _Function(1, _written(str.upper)),
    "snakecase": _Function(1, _written(lambda text: text.replace(" ", "_"))),
    "kebabcase": _Function(1, _written(lambda text: text.replace(" ", "-"))),
    "titlecase": _Function(1, _written(lambda text: " ".join(word[:1].upper() + word[1:] for word in text.split(" ")))),
    "typeof": _Function(1, type_of),
    "bool": _Function(1, _converted(truth_of)),
    "string": _Function(1, _converted(text_of)),
    "number": _Function(1, _number),
}
