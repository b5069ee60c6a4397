"""Finding profiles, many askers at once: what is asked for while one read is under way is found by the next."""

import asyncio
from collections.abc import Sequence
from typing import Final

from pipeline.store import erasures, profiles
from pipeline.store.database import Database
from pipeline.store.glances import Glances
from pipeline.store.profiles import Head
from schemas.errors import Refused

MOST: Final = 500  # addresses in one read
FEW: Final = 8  # are looked up on SQLite before a thread could begin
READS: Final = 2  # under way at once on PostgreSQL: one that waits for a processor holds up only those that are with it


class LookUps:
    """Reads heads of profiles for all requests of a process. Belongs to the event loop it is first used in."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._glances = Glances(database) if database.postgres else None
        self._asked: list[tuple[Sequence[str], asyncio.Future[dict[str, Head]]]] = []
        self._readers: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Ends what is open."""
        if self._glances is not None:
            await self._glances.close()

    async def find(self, addresses: Sequence[str]) -> dict[str, Head]:
        """Canonical profiles by address, as `store.profiles.heads` finds them. Unavailable when the database cannot be asked."""
        if self._glances is None and len(addresses) <= FEW:
            return await self._database.glance(lambda connection: profiles.heads(connection, addresses))
        answer: asyncio.Future[dict[str, Head]] = asyncio.get_running_loop().create_future()
        self._asked.append((addresses, answer))
        if len(self._readers) < (1 if self._glances is None else READS):
            self._readers.add(asyncio.ensure_future(self._read()))
        return await answer

    async def one(self, address: str) -> Head:
        """The profile at an address. Refused (404) when there is none; 410 for the id of a profile that was deleted. Of an external id
        nobody is told that its person is gone: whoever asks may have guessed it."""
        found = (await self.find((address,))).get(address)
        if found is None:
            if ":" not in address and await self._database.read(lambda c: erasures.deleted_at(c, address)) is not None:
                raise Refused("deleted", "The profile was deleted.", status=410)
            raise not_found()
        return found

    async def _read(self) -> None:
        try:
            while self._asked:
                await self._read_some()
        finally:  # at once, so that whoever asks next does not take this for a reader
            self._readers = {one for one in self._readers if one is not asyncio.current_task()}

    async def _read_some(self) -> None:
        taken, size = [], 0
        while self._asked and size < MOST:
            taken.append(self._asked.pop(0))
            size += len(taken[-1][0])
        wanted = [one for addresses, _ in taken for one in addresses]
        try:
            found = await self._heads(wanted)
        except BaseException as error:
            for _, answer in taken:
                if not answer.done():
                    answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for _, answer in taken:
            if not answer.done():
                answer.set_result(found)

    async def _heads(self, wanted: Sequence[str]) -> dict[str, Head]:
        if self._glances is None:
            return await self._database.read(lambda connection: profiles.heads(connection, wanted))
        return await self._glances.answer(lambda: profiles.asking_for_heads(wanted))


def not_found() -> Refused:
    """Of a profile."""
    return Refused("not_found", "Profile was not found.", status=404)
