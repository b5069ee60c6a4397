"""Every profile as lines of JSON, in bounded memory.

Each line is true of one instant. A snapshot of all of them would keep the database from cleaning up for as long as the slowest reader
takes; instead, profiles that merged or came apart while the export ran are told once more at the end, and the last line of an
id holds. A line `{"complete": true}` ends it: without it, it was cut off, and goes on with `as_of` and the last line's `cursor` as
`after`."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from pipeline.query.profile_api.views import profile_item
from pipeline.store import people, profiles
from pipeline.store.database import Database
from pipeline.store.profiles import Found
from schemas.errors import Refused
from schemas.exact_json import json_dumps

CHUNK: Final = 500  # profiles in memory
FIELDS: Final = frozenset(("external_ids", "traits", "metadata", "merged"))
COMPLETE: Final = b'{"complete":true}\n'
PARTS: Final = ("users", "accounts", "moved")


@dataclass(frozen=True, slots=True)
class Export:
    """`as_of` (µs) is when it began, `after` the cursor of the last line that arrived; empty for all."""

    as_of: int
    after: str = ""

    async def lines(self, database: Database) -> AsyncIterator[bytes]:
        """Some lines at a time: users by id, accounts by id, then those that changed hands meanwhile. Each has the `cursor` that an
        export goes on behind."""
        part, _, key = self.after.partition(":")
        for name in PARTS[PARTS.index(part) if part else 0 :]:
            behind = key if name == part else ""
            async for some in self._moved(database, behind) if name == "moved" else self._by_id(database, name, behind):
                yield some
        yield COMPLETE

    async def _by_id(self, database: Database, collection: str, behind: str) -> AsyncIterator[bytes]:
        def read(connection: Connection) -> list[Found]:
            return profiles.whole(connection, people.by_id(connection, collection, behind, self.as_of, CHUNK))

        while chunk := await database.read(read):
            behind = chunk[-1].id
            yield b"".join(_line(one, f"{collection}:{one.id}") for one in chunk)

    async def _moved(self, database: Database, behind: str) -> AsyncIterator[bytes]:
        """Their cursors lead to the beginning of the chunk: a line that comes twice does no harm."""
        following: str | None = behind

        def read(connection: Connection) -> tuple[list[Found], str | None]:
            heads, after = people.moved(connection, self.as_of, behind, CHUNK)
            return profiles.whole(connection, heads), after

        while following is not None:
            behind = following
            chunk, following = await database.read(read)
            if chunk:
                yield b"".join(_line(one, f"moved:{behind}") for one in chunk)


def asked(query: Mapping[str, str], now: int) -> Export:
    """The export that the parameters ask for. Refused when they are not those of one that began earlier."""
    as_of, after = query.get("as_of", ""), query.get("after", "")
    if after and not as_of:
        raise Refused("validation_error", "after needs the as_of of the export that it goes on with.")
    if as_of and not (as_of.isascii() and as_of.isdigit() and len(as_of) < 18):
        raise Refused("validation_error", "as_of must be the number that the export's first answer gave.")
    if "\0" in after or (after and after.partition(":")[0] not in PARTS):
        raise Refused("validation_error", "after must be the cursor of the last line that arrived.")
    return Export(int(as_of) if as_of else now, after)


def _line(found: Found, cursor: str) -> bytes:
    item: dict[str, Any] = {"collection": found.head.collection, **profile_item(found, FIELDS, None), "cursor": cursor}
    return json_dumps(item) + b"\n"
