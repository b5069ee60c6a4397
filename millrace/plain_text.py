"""Text of strangers for a terminal. Whoever has a write key chooses ids and names, and could otherwise move the cursor of whoever
looks at them, hide what stands beside them, or add lines that nobody wrote."""

import re
from typing import Final

# Control characters (ECMA-48), those that turn the direction of writing (Unicode TR 36), and halves of characters, which nothing prints.
_COMMANDS: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT: Final = re.compile(f"[{_COMMANDS}]")
_IN_LINE: Final = re.compile(f"[{_COMMANDS}\t\n]")


def plain(text: str) -> str:
    """The text with what a terminal would obey written out as in JSON; its lines stay."""
    return _IN_TEXT.sub(_written_out, text)


def plain_line(text: str) -> str:
    """The same, and it is one line."""
    return _IN_LINE.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
