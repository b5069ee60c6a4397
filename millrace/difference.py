"""Two JSON values side by side, line by line."""

import json
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Final, NamedTuple

from millrace.plain_text import plain

CONTEXT: Final = 1  # lines that are the same, shown around those that are not


class Line(NamedTuple):
    """`sign` is a blank, `-` or `+`; `…` stands for lines that are left out."""

    sign: str
    text: str

    @property
    def colour(self) -> str:
        return {"-": "red", "+": "green"}.get(self.sign, "dim")


def lines(before: Sequence[Any], after: Sequence[Any]) -> Iterator[Line]:
    """What changes between two lists of JSON values."""
    old, new = _text(before), _text(after)
    groups = SequenceMatcher(None, old, new, autojunk=False).get_grouped_opcodes(CONTEXT)
    for number, group in enumerate(groups):
        if number:
            yield Line("…", "")
        for kind, old_from, old_to, new_from, new_to in group:
            if kind == "equal":
                yield from (Line(" ", text) for text in old[old_from:old_to])
                continue
            yield from (Line("-", text) for text in old[old_from:old_to])
            yield from (Line("+", text) for text in new[new_from:new_to])


def _text(values: Sequence[Any]) -> list[str]:
    return [
        line for one in values for line in json.dumps(one, indent=2, ensure_ascii=False, sort_keys=True).splitlines()
    ]


def print_lines(found: Iterator[Line], indent: str = "    ") -> None:
    """To stdout, in colours on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for line in found:
        console.print(
            Text(plain(f"{indent}{line.sign} {line.text}").rstrip(), style=line.colour if console.is_terminal else "")
        )
