"""`${VAR}` and `${VAR:-default}` in the scalars of `millrace.yaml`; `$${` is a literal `${`."""

import re
from collections.abc import Callable, Mapping
from typing import Final

_REFERENCE: Final = re.compile(r"\$\$\{|\$\{(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\})?")


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
            fault(f"environment variable {name} is not set; set it, or give a default: ${{{name}:-default}}")
            return ""
        return value

    return _REFERENCE.sub(replace, text)
