"""Writes small databases in MaxMind's format: a binary tree over address bits, then the records, then what it is about."""

import struct
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final, NamedTuple

_BITS: Final = 128  # every network stands in the tree as IPv6: IPv4 below ::/96
_SEPARATOR: Final = bytes(16)
_MARKER: Final = b"\xab\xcd\xefMaxMind.com"


class _Whole(NamedTuple):
    """An integer of one of the format's types: 5, 6 and 9 have 16, 32 and 64 bits."""

    kind: int
    number: int


_Node = list[Any]  # two children, each a node, a network's record or None


def write(path: Path, networks: Mapping[str, Any], kind: str = "GeoLite2-City") -> None:
    """A database of `kind` that holds a record for each network. Networks do not overlap."""
    root: _Node = [None, None]
    for text, record in networks.items():
        _plant(root, text, record)
    nodes = _numbered(root)
    data, places = b"", {}
    for node in nodes:
        for child in node:
            if child is not None and not isinstance(child, list):
                places[id(child)] = len(data)
                data += _encoded(child)
    tree = b"".join(_pointer(child, nodes, places) for node in nodes for child in node)
    about = {
        "binary_format_major_version": _Whole(5, 2),
        "binary_format_minor_version": _Whole(5, 0),
        "build_epoch": _Whole(9, 1_767_225_600),
        "database_type": kind,
        "description": {"en": "written by a test"},
        "ip_version": _Whole(5, 6),
        "languages": ["en"],
        "node_count": _Whole(6, len(nodes)),
        "record_size": _Whole(5, 32),
    }
    path.write_bytes(tree + _SEPARATOR + data + _MARKER + _encoded(about))


def _plant(root: _Node, text: str, record: Any) -> None:
    network = ip_network(text)
    length = network.prefixlen + (_BITS - network.max_prefixlen)
    address = int(network.network_address)
    bits = [address >> (_BITS - 1 - at) & 1 for at in range(length)]
    node = root
    for bit in bits[:-1]:
        if node[bit] is None:
            node[bit] = [None, None]
        node = node[bit]
    node[bits[-1]] = record


def _numbered(root: _Node) -> list[_Node]:
    nodes = [root]
    for node in nodes:  # grows while it is walked
        nodes += [child for child in node if isinstance(child, list)]
    return nodes


def _pointer(child: Any, nodes: list[_Node], places: Mapping[int, int]) -> bytes:
    """The number of a node; of no record the count of nodes; of a record that count, the separator and its place."""
    if child is None:
        return struct.pack(">I", len(nodes))
    if isinstance(child, list):
        return struct.pack(">I", next(at for at, node in enumerate(nodes) if node is child))
    return struct.pack(">I", len(nodes) + len(_SEPARATOR) + places[id(child)])


def _encoded(value: Any) -> bytes:
    match value:
        case str():
            return _control(2, len(value.encode())) + value.encode()
        case float():
            return _control(3, 8) + struct.pack(">d", value)
        case int():
            return _encoded(_Whole(6, value))
        case _Whole(kind, number):
            raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
            return _control(kind, len(raw)) + raw
        case list():
            return _control(11, len(value)) + b"".join(map(_encoded, value))
        case dict():
            return _control(7, len(value)) + b"".join(_encoded(name) + _encoded(one) for name, one in value.items())
    raise TypeError(type(value))


def _control(kind: int, size: int) -> bytes:
    """Type in the top three bits, or behind them when it is greater than seven; size in the rest, or behind as well."""
    short, more = (size, b"") if size < 29 else (29, bytes((size - 29,)))
    return (bytes((kind << 5 | short,)) if kind < 8 else bytes((short, kind - 7))) + more
