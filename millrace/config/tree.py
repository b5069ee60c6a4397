"""The YAML text as plain values that remember their lines."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final

import yaml

Path = tuple[str | int, ...]

_MERGE: Final = "tag:yaml.org,2002:merge"
_TEXT: Final = "tag:yaml.org,2002:str"


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing that is wrong: the line (from 1), the dotted key, what is wrong and what to do."""

    line: int
    key: str
    what: str

    def at(self, file: str) -> str:
        """`millrace.yaml:12 destinations.crm.api_key: required …`"""
        place = f"{file}:{self.line}" if self.line else file
        return f"{place} {self.key}: {self.what}" if self.key else f"{place}: {self.what}"


@dataclass(slots=True)
class Tree:
    """`value` is made of dict, list and scalars; `lines` knows where each path stands."""

    value: Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of a path, or of the nearest thing around it that is written down."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)

    def fault(self, path: Path, what: str) -> None:
        """Notes a fault at a path."""
        self.faults.append(Fault(self.line(path), dotted(path), what))


def dotted(path: Path) -> str:
    """`destinations.crm.filter.types[0]`"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def parse(text: str) -> Tree:
    """Reads YAML. A fault of its syntax is the only one that hides others."""
    tree = Tree()
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            tree.value = _Reader(loader, tree).read(node, ())
    except yaml.YAMLError as error:
        tree.value = None
        tree.faults = [_syntax(error)]
    finally:
        loader.dispose()
    return tree


class _Reader:
    """Walks nodes; `above` guards against an alias inside its own anchor."""

    def __init__(self, loader: yaml.SafeLoader, tree: Tree) -> None:
        self.loader, self.tree = loader, tree
        self.above: set[int] = set()

    def read(self, node: yaml.Node, path: Path) -> Any:
        self.tree.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in self.above:
            self.tree.fault(path, "an alias points at what it stands in; write the value out")
            return None
        self.above.add(id(node))
        try:
            match node:
                case yaml.MappingNode():
                    return self._mapping(node, path)
                case yaml.SequenceNode():
                    return [self.read(one, (*path, index)) for index, one in enumerate(node.value)]
                case _:
                    return self._scalar(node, path)
        finally:
            self.above.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == _MERGE:
                merged = self._merged(value, path) | merged
            elif not isinstance(key, yaml.ScalarNode):
                self.tree.faults.append(Fault(line, dotted(path), "a key must be plain text"))
            elif key.value in own:
                first = self.tree.lines[(*path, key.value)]
                self.tree.faults.append(
                    Fault(line, dotted((*path, key.value)), f"is given twice, first in line {first}; keep one")
                )
            else:
                self.tree.lines[(*path, key.value)] = line
                own[key.value] = self.read(value, (*path, key.value))
        return merged | own

    def _merged(self, node: yaml.Node, path: Path) -> dict[str, Any]:
        values = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for one in values:
            value = self.read(one, path)
            if isinstance(value, dict):
                merged = value | merged
            else:
                self.tree.fault(path, "<< takes a mapping or a list of mappings")
        return merged

    def _scalar(self, node: yaml.Node, path: Path) -> Hashable:
        try:
            value: Hashable = self.loader.construct_object(node, deep=True)
        except ValueError:
            self.tree.fault(path, "looks like a date or a number but is none; put it in quotes")
            return None
        if isinstance(value, str | int | float | bool | None):
            return value
        return str(node.value)  # a date written without quotes stays the text it was


def _syntax(error: yaml.YAMLError) -> Fault:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    parts = [getattr(error, name, None) for name in ("context", "problem")]
    said = ", ".join(part for part in parts if part) or type(error).__name__
    return Fault(mark.line + 1 if mark else 0, "", f"not valid YAML: {said}; mend it, then check again")
