"""`${VAR}`, `${file:path}` and `${secret:name}` in the scalars of `millrace.yaml`, each with a default after `:-`; `$${` is a
literal `${`."""

import re
from collections.abc import Callable, Mapping
from typing import Final

_REFERENCE: Final = re.compile(
    r"\$\$\{|\$\{(?:(?P<name>(?:file|secret):[^}]+?|[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?"
)


def expand(text: str, variables: Mapping[str, str], fault: Callable[[str], None]) -> str:
    """The text with its references replaced. As in a shell, `:-` also replaces an empty variable.

    What cannot be replaced is told to `fault` with its remedy; values are never part of it."""

    def replace(match: re.Match[str]) -> str:
        name, default = match["name"], match["default"]
        if match[0] == "$${":
            return "${"
        if name is None:
            fault("a reference is not closed or not named; write ${VAR} or ${VAR:-default}, and $${ for a literal ${")
            return ""
        value = variables.get(name)
        if default is not None:
            return value or default
        if value is None:
            fault(_missing(name))
            return ""
        return value

    return _REFERENCE.sub(replace, text)


def _missing(name: str) -> str:
    kind, colon, rest = name.partition(":")
    if not colon:
        return f"environment variable {name} is not set; set it, or give a default: ${{{name}:-default}}"
    if kind == "file":
        return f"there is no file {rest}; a relative path begins at the folder of this file"
    return f"there is no secret {rest}; add it with `millrace secrets set {rest}`"
