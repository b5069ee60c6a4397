"""Browser, system, device and bot from a user agent and its client hints. Pure; each user agent is looked into once."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson

if TYPE_CHECKING:
    from ua_parser import Parser, Result

REMEMBERED: Final = 4_096  # user agents
LONGEST: Final = 1_000  # characters of a user agent that are looked at
LONGEST_HINTS: Final = 2_000  # bytes of `userAgentData`; longer ones are passed over
WINDOWS_11: Final = 13  # first major of `platformVersion` that is sold as Windows 11

_HEADLESS: Final = re.compile(r"Headless|PhantomJS|Chrome-Lighthouse")  # browsers, but with nobody in front of them
_APP: Final = re.compile(r"^Dalvik/|\bCFNetwork/")  # what apps of Android and of Apple's systems say: no browser


class UserAgents:
    """`details`: browser, os and device; `bots`: the flag `bot`."""

    def __init__(self, *, details: bool = True, bots: bool = True) -> None:
        self._details = details
        self._bots = bots
        self._known = lru_cache(maxsize=REMEMBERED)(self._describe)

    def describe(self, user_agent: str, hints: bytes = b"") -> bytes | None:
        """The inside of a JSON object: `browser` {name, version}, `os` {name, version}, `device` {manufacturer, model}, `bot`, each only
        when it is known. `hints` is the JSON of `context.userAgentData`, empty without."""
        return self._known(user_agent[:LONGEST], hints if len(hints) <= LONGEST_HINTS else b"")

    def _describe(self, user_agent: str, hints: bytes) -> bytes | None:
        parsed = _parser().parse(user_agent)
        found: dict[str, Any] = {}
        if self._details:
            hinted = _hints(hints)
            parts = {
                "browser": _browser(parsed, hinted),
                "os": _system(parsed, hinted),
                "device": _device(parsed, hinted),
            }
            found |= {name: part for name, part in parts.items() if part}
        if self._bots and (user_agent := user_agent.strip()):
            found["bot"] = _is_spider(parsed) or _HEADLESS.search(user_agent) is not None
        return orjson.dumps(found)[1:-1] or None


@cache
def _parser() -> "Parser":
    """Made when the first user agent comes: it takes a tenth of a second and 25 MB."""
    from ua_parser import Parser
    from ua_parser.loaders import load_lazy_builtins
    from ua_parser.regex import Resolver

    return Parser(Resolver(load_lazy_builtins()))


# ── The user agent ────────────────────────────────────────────────────────────────────────────────────────────────


def _is_spider(parsed: "Result") -> bool:
    return parsed.device is not None and parsed.device.family == "Spider"


def _browser(parsed: "Result", hints: "_Hints") -> Mapping[str, str]:
    agent = parsed.user_agent
    if agent is None or _APP.search(parsed.string) is not None:
        return {}
    version = _version(agent.major, agent.minor, agent.patch, agent.patch_minor)
    return _without_blanks(name=agent.family, version=_full_version(agent.family, agent.major, hints) or version)


def _system(parsed: "Result", hints: "_Hints") -> Mapping[str, str]:
    """Browsers have frozen the version in the user agent; where the page asked for the true one, that is taken."""
    system = parsed.os
    name = hints.platform if system is None else system.family
    version = "" if system is None else _version(system.major, system.minor, system.patch, system.patch_minor)
    if hints.platform_version:
        version = _windows(hints.platform_version, version) if name == "Windows" else hints.platform_version
    return _without_blanks(name=name, version=version if name else "")


def _device(parsed: "Result", hints: "_Hints") -> Mapping[str, str]:
    device = parsed.device
    if device is None or _is_spider(parsed) or not device.brand or device.brand.startswith("Generic"):
        return _without_blanks(model=hints.model)
    model = hints.model or device.model
    return _without_blanks(manufacturer=device.brand, model=None if model == "iOS-Device" else model)


def _version(*parts: str | None) -> str:
    return ".".join(part for part in parts if part is not None)


def _without_blanks(**fields: str | None) -> Mapping[str, str]:
    return {name: value for name, value in fields.items() if value}


# ── Client hints ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Brand(msgspec.Struct):
    brand: str = ""
    version: str = ""


class _Hints(msgspec.Struct, rename="camel"):
    platform: str = ""
    platform_version: str = ""
    model: str = ""
    ua_full_version: str = ""
    full_version_list: Sequence[_Brand] = ()


_NO_HINTS: Final = _Hints()
_decode_hints: Final = msgspec.json.Decoder(_Hints | None).decode


def _hints(raw: bytes) -> _Hints:
    """Hints of another shape say nothing."""
    if not raw:
        return _NO_HINTS
    try:
        return _decode_hints(raw) or _NO_HINTS
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NO_HINTS


def _full_version(family: str, major: str | None, hints: _Hints) -> str | None:
    """The browser's own version: of the brand that it is known by, when it is of the major version that it says."""
    word = family.split()[0]
    candidates: Iterable[str] = [one.version for one in hints.full_version_list if word in one.brand]
    return next((one for one in (*candidates, hints.ua_full_version) if one.partition(".")[0] == major), None)


def _windows(platform_version: str, otherwise: str) -> str:
    """Windows counts `platformVersion` by releases of its own."""
    major = platform_version.partition(".")[0]
    if not major.isdecimal() or int(major) == 0:
        return otherwise
    return "11" if int(major) >= WINDOWS_11 else "10"
