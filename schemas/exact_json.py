"""JSON whose numbers keep their value: integers of any length as Python's, where common decoders make a double of what exceeds
64 bits. Everything of a client's that is decoded or encoded between the log and a destination goes through here.
"""

import json
from math import isfinite
from typing import Any, Final

import msgspec
import orjson

LONGEST_INTEGER: Final = 4_300  # digits that Python converts; a longer one is kept as text

_decode: Final = msgspec.json.Decoder().decode
_sorted: Final = msgspec.json.Encoder(order="sorted").encode
_plain: Final = msgspec.json.Encoder().encode


def json_loads(raw: bytes | str) -> Any:
    """Decodes JSON. ValueError when it is none.

    A number with a fraction or an exponent is a double, as everywhere in the field; one beyond a double's range is null, as
    `JSON.stringify` writes infinity, rather than an error."""
    try:
        return _decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _by_hand(raw)


def json_dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """Encodes what `json_loads` gives. TypeError for anything else."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except orjson.JSONEncodeError:  # an integer beyond 64 bits, mostly
        return _sorted(value) if sort_keys else _plain(value)


def _by_hand(raw: bytes | str) -> Any:
    """The decoder of the standard library can be told what to do with a number beyond what others take."""
    text = raw if isinstance(raw, str) else raw.decode()
    try:
        return json.loads(text, parse_float=_double, parse_int=_integer, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _double(digits: str) -> float | None:
    number = float(digits)
    return number if isfinite(number) else None


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits.lstrip("-")) <= LONGEST_INTEGER else digits


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
