"""Patterns of `match`: the whole text, case-sensitive. A pattern without a remedy in it takes time linear in the text."""

import re
from collections.abc import Callable
from functools import lru_cache


@lru_cache(maxsize=1024)
def glob(pattern: str) -> Callable[[str], object]:
    """Whether a text matches: `*` any run, `?` one character, `[abc]`, `[a-z]`, `[^a-z]` one of a set, `\\x` x itself.
    ValueError when a set or a backslash has no end.

    What stands between two stars is looked for once, at its first place: a later one could not help the rest. So no text makes
    it go back and forth."""
    parts: list[list[str]] = [[]]
    place = 0
    while place < len(pattern):
        char = pattern[place]
        place += 1
        if char == "*":
            parts.append([])
        elif char == "?":
            parts[-1].append(".")
        elif char == "[":
            inside, place = _set(pattern, place)
            parts[-1].append(inside)
        else:
            if char == "\\":
                if place == len(pattern):
                    raise ValueError("the pattern ends with a backslash; write \\\\ for the character itself")
                char = pattern[place]
                place += 1
            parts[-1].append(re.escape(char))
    first, *rest = ("".join(part) for part in parts)
    if not rest:
        return re.compile(first, re.DOTALL).fullmatch
    *middle, last = rest
    runs = "".join(f"(?>.*?{part})" for part in middle if part)
    return re.compile(f"{first}{runs}.*{last}", re.DOTALL).fullmatch


def _set(pattern: str, place: int) -> tuple[str, int]:
    """The expression of a set whose bracket is open, and the place behind its end."""
    negated = pattern[place : place + 1] == "^"
    place += negated
    members: list[str] = []
    while place < len(pattern) and pattern[place] != "]":
        low, place = _member(pattern, place)
        if pattern[place : place + 1] == "-" and pattern[place + 1 : place + 2] not in ("", "]"):
            high, place = _member(pattern, place + 1)
            if high < low:
                raise ValueError(f"the range {low}-{high} in the pattern is empty; write its ends the other way round")
            members.append(f"{re.escape(low)}-{re.escape(high)}")
        else:
            members.append(re.escape(low))
    if place >= len(pattern) or not members:
        raise ValueError("a set in the pattern has no end or no members; write \\[ for the character itself")
    return f"[{'^' if negated else ''}{''.join(members)}]", place + 1


def _member(pattern: str, place: int) -> tuple[str, int]:
    if pattern[place] == "\\" and place + 1 < len(pattern):
        place += 1
    return pattern[place], place + 1
