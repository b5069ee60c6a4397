"""What of a request and an answer may be shown to people: their form, nothing secret and nobody's data. Pure.

Values of a request lose their letters and digits and keep their form (`ann@shop.test` becomes `xxx@xxxx.xxxx`), so that a wrong
format can be seen. An answer keeps its words, since they say what is wrong, except those that were in the request.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, SecretStr

from destinations.exchanges import Exchange
from schemas.exact_json import json_dumps, json_loads

STARS: Final = "**********"
LONGEST_SAMPLE: Final = 4_000  # characters of a request or an answer
LONGEST_MESSAGE: Final = 120
_SHORTEST_SECRET: Final = 4  # characters; shorter ones stand in too much that is none
_SHORTEST_VALUE: Final = 3  # of a request's, that is struck from its answer
_READ: Final = 65_536  # bytes of a request that are compared with its answer; of a larger one no words are shown
_SHOWN: Final = 2  # items of a list
_KEYS: Final = 40  # of an object
_LEVELS: Final = 8
_STRING: Final = 60
_PLAIN: Final = frozenset({"type", "event", "channel", "messageId", "timestamp", "receivedAt", "sentAt", "source"})
_HEADERS: Final = frozenset(
    {"content-type", "content-length", "content-encoding", "user-agent", "accept", "date", "server", "retry-after"}
)
_WORD: Final = re.compile(r"[A-Za-z_$][A-Za-z_$ .:-]{0,63}|[A-Za-z_$]{1,60}\d{1,3}")
_PERSONAL: Final = re.compile(
    r"""[^\s@"'<>,;]+@[^\s@"'<>,;]+            # an e-mail address
    | \b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b
    | (?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])
    | \b(?:[0-9a-fA-F]{1,4}:){3,7}[0-9a-fA-F]{0,4}\b
    | \+?\d[\d\s().-]{5,}\d                 # a telephone number, an account
    | \b(?=\w*\d)[\w-]{16,}                 # a token, an id
    """,
    re.VERBOSE,
)
_VARIES: Final = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\b\w*\d\w*\b")
_SAID: Final = ("message", "error_description", "detail", "error", "title", "reason", "description", "errors")


def secrets_of(*settings: Any) -> list[str]:
    """Every secret in settings, the longest first."""
    found = {secret for one in settings for secret in _secrets(one)}
    return sorted((one for one in found if len(one) >= _SHORTEST_SECRET), key=len, reverse=True)


def _secrets(value: Any) -> Iterator[str]:
    match value:
        case SecretStr():
            yield value.get_secret_value()
        case BaseModel():
            for _, inner in value:
                yield from _secrets(inner)
        case dict():
            for inner in value.values():
                yield from _secrets(inner)
        case list() | tuple():
            for inner in value:
                yield from _secrets(inner)


def struck(value: Any, secrets: Sequence[str]) -> Any:
    """A JSON value with every secret in it replaced by stars."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, STARS)
        return value
    if isinstance(value, dict):
        return {name: struck(one, secrets) for name, one in value.items()}
    return [struck(one, secrets) for one in value] if isinstance(value, list) else value


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────────────────────


def request_shown(exchange: Exchange, secrets: Sequence[str]) -> str:
    """A request as JSON, at most LONGEST_SAMPLE characters."""
    body = _parsed(exchange.body)
    shown = {
        "request": f"{exchange.method} {_address(exchange.url, set(_leaves(body)))}",
        "headers": _headers(exchange.headers),
        "body": formed(body),
    }
    return _text(struck(shown, secrets))


def event_shown(event: Mapping[str, Any], secrets: Sequence[str]) -> str:
    """An event that went to no service, likewise."""
    return _text(struck({"event": formed(dict(event))}, secrets))


def formed(value: Any, levels: int = _LEVELS) -> Any:
    """A JSON value whose texts and numbers have lost all but their form."""
    if isinstance(value, dict):
        if levels == 0:
            return {}
        plain = _PLAIN if "messageId" in value and "type" in value else ()
        return {
            _key(name): one if name in plain and isinstance(one, str) else formed(one, levels - 1)
            for name, one in list(value.items())[:_KEYS]
        }
    if isinstance(value, list):
        shown = [formed(one, levels - 1) for one in value[:_SHOWN]] if levels else []
        return [*shown, f"… {len(value) - len(shown)} more"] if len(value) > len(shown) else shown
    if isinstance(value, str):
        return _form(value[:_STRING]) + ("…" if len(value) > _STRING else "")
    if isinstance(value, bool) or value is None:
        return value
    return _form(str(value)) if isinstance(value, float) else int(_form(str(value))) if len(str(value)) < 20 else 9


def _form(text: str) -> str:
    return "".join("9" if one.isdigit() else "X" if one.isupper() else "x" if one.isalnum() else one for one in text)


def _key(name: str) -> str:
    return name if _WORD.fullmatch(name) else _form(name[:_STRING])


def _address(url: str, values: Collection[str]) -> str:
    """Of a path the words that are not also in the body."""
    parts = urlsplit(url)
    path = "/".join(
        one if not one or (_WORD.fullmatch(one) and one not in values) else _form(one) for one in parts.path.split("/")
    )
    query = "&".join(f"{_key(name)}={_form(value)}" for name, value in parse_qsl(parts.query, keep_blank_values=True))
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{path}" + (f"?{query}" if query else "")


def _headers(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value[:200] if name.lower() in _HEADERS else STARS for name, value in list(headers.items())[:_KEYS]}


def _parsed(raw: bytes) -> Any:
    try:
        return json_loads(raw)
    except ValueError:
        text = raw[:_READ].decode(errors="replace")
        pairs = parse_qsl(text)
        return dict(pairs) if pairs else text


# ── Answers ───────────────────────────────────────────────────────────────────────────────────────────────────────


def answer_shown(exchange: Exchange, secrets: Sequence[str]) -> str | None:
    """What a service answered, as JSON, at most LONGEST_SAMPLE characters; None: nothing."""
    if exchange.status is None:
        return None
    shown = {
        "status": exchange.status,
        "headers": _headers(exchange.answer_headers),
        "body": _impersonal(_parsed_answer(exchange.answer), _striker(exchange, secrets)),
    }
    return _text(struck(shown, secrets))


def message_of(exchange: Exchange, secrets: Sequence[str]) -> str:
    """What a service says is wrong, without what varies from event to event: it groups errors. Empty when it does not say."""
    answer = _parsed_answer(exchange.answer)
    kind = next((value for name, value in exchange.answer_headers.items() if name.lower() == "content-type"), "")
    if isinstance(answer, str) and not kind.startswith("text/plain"):
        return ""
    return normalised(_striker(exchange, secrets)(_said(answer)))


def _parsed_answer(raw: bytes) -> Any:
    try:
        return json_loads(raw)
    except ValueError:
        return raw.decode(errors="replace")


def _impersonal(value: Any, strike: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {strike(name): _impersonal(one, strike) for name, one in value.items()}
    if isinstance(value, list):
        return [_impersonal(one, strike) for one in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return strike(value)
    return value if strike(str(value)) == str(value) else STARS


def _striker(exchange: Exchange, secrets: Sequence[str]) -> Callable[[str], str]:
    """Takes out of words secrets, what was in the request, and what looks like somebody's."""
    if len(exchange.body) > _READ:
        return lambda _: ""
    values = {one for one in _leaves(_parsed(exchange.body)) if len(one) >= _SHORTEST_VALUE}
    ordered = sorted(values, key=len, reverse=True)

    def strike(words: str) -> str:
        words = struck(words, secrets)
        for one in ordered:
            words = words.replace(one, STARS)
        return _PERSONAL.sub(STARS, words)

    return strike


def normalised(words: str) -> str:
    """A message without what is quoted and what has digits: messages of one kind become the same."""
    return " ".join(_VARIES.sub("…", _PERSONAL.sub("…", words)).replace(STARS, "…").split())[:LONGEST_MESSAGE]


def _said(answer: Any, levels: int = 3) -> str:
    if isinstance(answer, str):
        return answer
    if isinstance(answer, list) and answer and levels:
        return _said(answer[0], levels - 1)
    if isinstance(answer, dict) and levels:
        for name in _SAID:
            if name in answer and (said := _said(answer[name], levels - 1)):
                return said
    return ""


def _leaves(value: Any) -> Iterator[str]:
    """Texts and numbers, except those that stand for no person."""
    if isinstance(value, dict):
        plain = _PLAIN if "messageId" in value and "type" in value else ()
        for name, one in value.items():
            if name not in plain:
                yield from _leaves(one)
    elif isinstance(value, list):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, str):
        yield value
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _text(shown: Any) -> str:
    text = json_dumps(shown).decode(errors="replace")
    return text if len(text) <= LONGEST_SAMPLE else text[: LONGEST_SAMPLE - 1] + "…"
