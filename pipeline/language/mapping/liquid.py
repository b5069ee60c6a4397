"""Liquid templates as the reference allows them: no loops, so that a template takes no longer than it is long. Pure.

There is no clock: the same event gives the same text whenever it is tried. What cannot be rendered for an event, or grows beyond
LONGEST, is undefined.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, NoReturn

from pipeline.language.mapping.filters import FILTERS, Unrenderable, capped, liquid_text
from pipeline.language.mapping.paths import UNDEFINED, Value

LENGTH_LIMIT: Final = 1_000  # characters of a template
DEPTH_LIMIT: Final = 20
DISABLED_TAGS: Final = frozenset(("case", "for", "include", "layout", "render", "tablerow"))
DISABLED_FILTERS: Final = frozenset(
    (
        "array_to_sentence_string", "concat", "find", "find_exp", "find_index", "find_index_exp", "group_by", "group_by_exp",
        "has", "has_exp", "map", "newline_to_br", "reject", "reject_exp", "reverse", "sort", "sort_natural", "uniq",
        "where_exp", "type",
    )
)  # fmt: skip
"""Both are the reference's."""


class LiquidError(ValueError):
    """A template that is none, in words that say what would be right."""


def compile_liquid(text: str) -> Value:
    """What a template makes of a payload: its text. LiquidError when it is none."""
    if len(text) > LENGTH_LIMIT:
        raise LiquidError(f"a template has at most {LENGTH_LIMIT:,} characters; shorten it")
    nodes = _Parser(text).whole()

    def value(payload: Any) -> Any:
        try:
            return _rendered(nodes, _Scope(payload if isinstance(payload, dict) else {}))
        except Unrenderable:
            return UNDEFINED

    return value


@dataclass(slots=True)
class _Scope:
    """What names mean while a template is rendered."""

    payload: Mapping[str, Any]
    names: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)

    def find(self, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        return self.payload.get(name, self.counters.get(name))


_Of = Callable[[_Scope], Any]
_Node = Callable[[_Scope], str]


def _rendered(nodes: Sequence[_Node], scope: _Scope) -> str:
    return capped("".join([node(scope) for node in nodes]))


# ── Expressions ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Word(NamedTuple):
    kind: str  # string, number, name, sign, end
    text: str


_WORDS: Final = re.compile(
    r"""\s*(?:(?P<string>"[^"]*"|'[^']*')|(?P<number>-?[0-9]+(?:\.[0-9]+)?)|(?P<name>[A-Za-z_][A-Za-z0-9_-]*)"""
    r"""|(?P<sign>==|!=|<>|>=|<=|[<>|:,.\[\]=]))"""
)
_NAMED: Final[Mapping[str, Any]] = {"true": True, "false": False, "nil": None, "null": None}
_EMPTY: Final = object()
_BLANK: Final = object()


def _words(text: str) -> list[_Word]:
    words, place = [], 0
    while text[place:].strip():
        found = _WORDS.match(text, place)
        if found is None:
            raise LiquidError(f"unexpected {text[place:].strip()[0]} in {text.strip()}; correct it")
        kind = found.lastgroup or ""
        words.append(_Word(kind, found[kind]))
        place = found.end()
    return [*words, _Word("end", "the end")]


class _Expression:
    """Reads what stands between braces."""

    def __init__(self, text: str) -> None:
        self._words = _words(text)
        self._next = 0

    @property
    def word(self) -> _Word:
        return self._words[self._next]

    def wrong(self, expected: str) -> NoReturn:
        raise LiquidError(f"expected {expected}, found {self.word.text}")

    def take(self, text: str, kind: str = "sign") -> bool:
        taken = self.word == (kind, text)
        self._next += taken
        return taken

    def name(self) -> str:
        if self.word.kind != "name":
            self.wrong("a name")
        self._next += 1
        return self._words[self._next - 1].text

    def end(self) -> None:
        if self.word.kind != "end":
            self.wrong("the end")

    def filtered(self) -> _Of:
        """A value and its filters."""
        value = self.value()
        while self.take("|"):
            value = self._filter(value)
        return value

    def _filter(self, value: _Of) -> _Of:
        name = self.name()
        function = FILTERS.get(name)
        if name in DISABLED_FILTERS:
            raise LiquidError(f"the filter {name} is switched off, as in the reference; leave it out")
        if function is None:
            raise LiquidError(f"unknown filter {name}; there are {', '.join(sorted(FILTERS))}")
        given: list[_Of] = []
        named: dict[str, _Of] = {}
        if self.take(":"):
            self._argument(given, named)
            while self.take(","):
                self._argument(given, named)
        if not function.least <= len(given) <= function.most:
            raise LiquidError(f"{name} takes {function.least} to {function.most} values, not {len(given)}")
        of = function.of

        def call(scope: _Scope) -> Any:
            return of(value(scope), *[one(scope) for one in given], **{key: one(scope) for key, one in named.items()})

        return call

    def _argument(self, given: list[_Of], named: dict[str, _Of]) -> None:
        at = self._next
        if self.word.kind == "name" and self._words[at + 1] == ("sign", ":"):
            key = self.name()
            if key != "allow_false":
                raise LiquidError(f"unknown option {key}; there is allow_false of default")
            self._next += 1
            named[key] = self.value()
        else:
            given.append(self.value())

    def value(self) -> _Of:
        kind, text = self.word
        self._next += 1
        if kind == "string":
            return _constant(text[1:-1])
        if kind == "number":
            return _constant(float(text) if "." in text else int(text))
        if kind != "name":
            self._next -= 1
            self.wrong("a value")
        if text in _NAMED:
            return _constant(_NAMED[text])
        if text in ("empty", "blank"):
            return _constant(_EMPTY if text == "empty" else _BLANK)
        return self._path(lambda scope: scope.find(text))

    def _path(self, value: _Of) -> _Of:
        while True:
            if self.take("."):
                value = _at(value, _constant(self.name()))
            elif self.take("["):
                value = _at(value, self.value())
                if not self.take("]"):
                    self.wrong("]")
            else:
                return value

    def condition(self) -> Callable[[_Scope], bool]:
        """Comparisons; `and` and `or` are read from the right, as in Liquid."""
        first = self._comparison()
        if self.take("and", "name"):
            rest = self.condition()
            return lambda scope: first(scope) and rest(scope)
        if self.take("or", "name"):
            other = self.condition()
            return lambda scope: first(scope) or other(scope)
        return first

    def _comparison(self) -> Callable[[_Scope], bool]:
        left = self.value()
        for sign, holds in _COMPARISONS.items():
            if self.take(sign, "name" if sign == "contains" else "sign"):
                right = self.value()
                return _compared(left, right, holds)
        return lambda scope: _true(left(scope))


def _compared(left: _Of, right: _Of, holds: Callable[[Any, Any], bool]) -> Callable[[_Scope], bool]:
    return lambda scope: holds(left(scope), right(scope))


def _constant(value: Any) -> _Of:
    return lambda _: value


def _at(value: _Of, key: _Of) -> _Of:
    return lambda scope: _member(value(scope), key(scope))


def _member(value: Any, key: Any) -> Any:
    if isinstance(value, dict):
        if isinstance(key, str) and key in value:
            return value[key]
        return len(value) if key == "size" else None
    if isinstance(value, list):
        if isinstance(key, int) and not isinstance(key, bool):
            return value[key] if -len(value) <= key < len(value) else None
        if key == "size":
            return len(value)
        return {"first": value[0], "last": value[-1]}.get(key) if value and isinstance(key, str) else None
    return len(value) if isinstance(value, str) and key == "size" else None


def _true(value: Any) -> bool:
    return value is not None and value is not False


def _equal(a: Any, b: Any) -> bool:
    for one, other in ((a, b), (b, a)):
        if one is _EMPTY:
            return isinstance(other, str | list | dict) and not other
        if one is _BLANK:
            return not _true(other) or (isinstance(other, str) and not other.strip()) or other in ([], {})
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return bool(a == b)


def _ordered(holds: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(a: Any, b: Any) -> bool:
        for kinds in (str, (int, float)):
            if isinstance(a, kinds) and isinstance(b, kinds):
                return holds(a, b)
        return False

    return compare


def _contains(value: Any, part: Any) -> bool:
    if isinstance(value, str):
        return liquid_text(part) in value
    return isinstance(value, list) and any(_equal(one, part) for one in value)


_COMPARISONS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "==": _equal,
    "!=": lambda a, b: not _equal(a, b),
    "<>": lambda a, b: not _equal(a, b),
    "<=": _ordered(lambda a, b: bool(a <= b)),
    ">=": _ordered(lambda a, b: bool(a >= b)),
    "<": _ordered(lambda a, b: bool(a < b)),
    ">": _ordered(lambda a, b: bool(a > b)),
    "contains": _contains,
}


# ── Templates ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Piece(NamedTuple):
    kind: str  # text, output, tag
    text: str
    line: str = ""  # of a tag: what stands behind its name


_PIECES: Final = re.compile(r"\{\{(-?)(.*?)(-?)\}\}|\{%(-?)(.*?)(-?)%\}", re.DOTALL)
_ENDRAW: Final = re.compile(r"\{%(-?)\s*endraw\s*(-?)%\}")


def _pieces(text: str) -> list[_Piece]:
    pieces: list[_Piece] = []
    place, trimmed = 0, False

    def plain(end: int, trim: bool) -> None:
        part = text[place:end]
        part = part.lstrip() if trimmed else part
        part = part.rstrip() if trim else part
        if part:
            pieces.append(_Piece("text", part))

    while (found := _PIECES.search(text, place)) is not None:
        plain(found.start(), bool(found[1] or found[4]))
        place, trimmed = found.end(), bool(found[3] or found[6])
        if found[2] is not None:
            pieces.append(_Piece("output", found[2]))
            continue
        tag = _tag(found[5])
        if tag.text != "raw":
            pieces.append(tag)
            continue
        end = _ENDRAW.search(text, place)
        if end is None:
            raise LiquidError("raw has no end; close it with endraw")
        plain(end.start(), bool(end[1]))
        place, trimmed = end.end(), bool(end[2])
    plain(len(text), trim=False)
    return pieces


def _tag(text: str) -> _Piece:
    text = text.strip()
    if text.startswith("#"):
        return _Piece("tag", "#")
    name, _, rest = text.replace("\n", " ", 1).partition(" ") if not text.startswith("liquid") else text.partition("\n")
    return _Piece("tag", name.strip(), rest)


class _Parser:
    """Reads pieces into nodes."""

    def __init__(self, text: str) -> None:
        self._pieces = _pieces(text)
        self._next = 0
        self._depth = 0

    def whole(self) -> list[_Node]:
        nodes, ended = self._until()
        if ended is not None:
            raise LiquidError(f"{ended.text} ends nothing; leave it out")
        return nodes

    def _until(self, *ends: str) -> tuple[list[_Node], _Piece | None]:
        """Nodes up to one of these tags, or one that is none of a beginning."""
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise LiquidError(f"nested deeper than {DEPTH_LIMIT}; write it flatter")
        nodes: list[_Node] = []
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            self._next += 1
            if piece.kind == "tag" and (piece.text in ends or piece.text in _INNER):
                self._depth -= 1
                return nodes, piece
            nodes += self._node(piece)
        if ends:
            raise LiquidError(f"something has no end; close it with {ends[-1]}")
        self._depth -= 1
        return nodes, None

    def _node(self, piece: _Piece) -> list[_Node]:
        if piece.kind == "text":
            text = piece.text
            return [lambda _: text]
        if piece.kind == "output":
            return [_output(piece.text)] if piece.text.strip() else []
        if piece.text in DISABLED_TAGS:
            raise LiquidError(f"the tag {piece.text} is switched off, as in the reference; leave it out")
        begin = _TAGS.get(piece.text)
        if begin is None:
            raise LiquidError(f"unknown tag {piece.text}; there are {', '.join(sorted(_TAGS))}")
        return begin(self, piece.line)

    def branches(self, line: str, end: str, *, negated: bool) -> list[_Node]:
        found: list[tuple[Callable[[_Scope], bool], list[_Node]]] = []
        holds = _condition(line)
        current = (lambda scope: not holds(scope)) if negated else holds
        while True:
            nodes, ended = self._until("elsif", "else", end)
            found.append((current, nodes))
            assert ended is not None, "an end was asked for"
            if ended.text == end:
                break
            if ended.text not in ("elsif", "else"):
                raise LiquidError(f"{ended.text} ends nothing here; close with {end}")
            current = _condition(ended.line) if ended.text == "elsif" else _always

        def node(scope: _Scope) -> str:
            for chosen, inner in found:
                if chosen(scope):
                    return _rendered(inner, scope)
            return ""

        return [node]

    def capture(self, line: str) -> list[_Node]:
        expression = _Expression(line)
        name = expression.name() if expression.word.kind != "string" else expression.word.text[1:-1]
        nodes, ended = self._until("endcapture")
        assert ended is not None, "an end was asked for"
        if ended.text != "endcapture":
            raise LiquidError(f"{ended.text} ends nothing here; close with endcapture")

        def node(scope: _Scope) -> str:
            scope.names[name] = _rendered(nodes, scope)
            return ""

        return [node]

    def comment(self, _: str) -> list[_Node]:
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            self._next += 1
            if piece.kind == "tag" and piece.text == "endcomment":
                return []
        raise LiquidError("comment has no end; close it with endcomment")

    def lines(self, text: str) -> list[_Node]:
        """The tag `liquid`: a tag a line."""
        pieces = [_tag(line) for line in text.splitlines() if line.strip()]
        self._pieces[self._next : self._next] = pieces
        return []


_INNER: Final = frozenset(("elsif", "else", "endif", "endunless", "endcapture", "endcomment", "endraw"))


def _output(text: str) -> _Node:
    expression = _Expression(text)
    value = expression.filtered()
    expression.end()
    return lambda scope: liquid_text(value(scope))


def _condition(text: str) -> Callable[[_Scope], bool]:
    expression = _Expression(text)
    holds = expression.condition()
    expression.end()
    return holds


def _always(_: _Scope) -> bool:
    return True


def _assign(line: str) -> list[_Node]:
    expression = _Expression(line)
    name = expression.name()
    if not expression.take("="):
        expression.wrong("=")
    value = expression.filtered()
    expression.end()

    def node(scope: _Scope) -> str:
        scope.names[name] = value(scope)
        return ""

    return [node]


def _counted(step: int) -> Callable[[_Parser, str], list[_Node]]:
    """increment shows the counter and adds one; decrement takes one and shows it."""

    def begin(_: _Parser, line: str) -> list[_Node]:
        expression = _Expression(line)
        name = expression.name()
        expression.end()

        def node(scope: _Scope) -> str:
            before = scope.counters.get(name, 0)
            scope.counters[name] = before + step
            return str(before if step > 0 else before + step)

        return [node]

    return begin


_TAGS: Final[Mapping[str, Callable[[_Parser, str], list[_Node]]]] = {
    "#": lambda parser, line: [],
    "assign": lambda parser, line: _assign(line),
    "capture": _Parser.capture,
    "comment": _Parser.comment,
    "decrement": _counted(-1),
    "echo": lambda parser, line: [_output(line)],
    "if": lambda parser, line: parser.branches(line, "endif", negated=False),
    "increment": _counted(1),
    "liquid": _Parser.lines,
    "raw": lambda parser, line: [],
    "unless": lambda parser, line: parser.branches(line, "endunless", negated=True),
}
