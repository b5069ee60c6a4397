"""Questions to PostgreSQL from the event loop itself. A thread has to wake up, and then to wait for the interpreter, at each step of a
look-up that takes the server a fraction of that."""

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import orjson
import psycopg
from psycopg import AsyncConnection
from psycopg.adapt import Transformer
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult
from sqlalchemy import Connection, make_url
from sqlalchemy.exc import DBAPIError, OperationalError

from pipeline.store import bulk
from pipeline.store.database import Database, unavailable

T = TypeVar("T")
_AMONG: Final = "= ANY(ARRAY(SELECT value::text FROM json_array_elements_text($1::json)))"


class Question(NamedTuple):
    """A statement whose `{}` stands for "is one of `values`", as `bulk.select` takes it."""

    sql: str
    values: Sequence[str]


Asking = Generator[Question, list[Any], T]
"""Asks, is sent the rows, and asks again until it knows the answer: the same on whichever connection."""


def answered(connection: Connection, asking: Asking[T]) -> T:
    """What comes of the questions on a connection of either database."""
    try:
        question = next(asking)
        while True:
            question = asking.send(bulk.select(connection, question.sql, question.values))
    except StopIteration as done:
        answer: T = done.value
        return answer


class Glances:
    """Connections of one event loop, each question in a transaction of its own: as many as there were answers
    under way at once, which the caller bounds."""

    def __init__(self, database: Database) -> None:
        arguments, named = database.engine.dialect.create_connect_args(make_url(database.url))
        self._arguments: Final = arguments
        self._named: Final[dict[str, Any]] = dict(named) | {"connect_timeout": 10, "application_name": "millrace"}
        self._idle: list[_Line] = []

    async def answer(self, asking: Callable[[], Asking[T]]) -> T:
        """What comes of the questions; they begin anew on another connection when one has ended. Unavailable when the database cannot be
        asked."""
        if self._idle:
            try:
                return await self._answer(self._idle.pop(), asking())
            except psycopg.Error:
                await self.close()  # one that was kept may have ended long ago, and so may the others
        try:
            connection = await AsyncConnection.connect(*self._arguments, **self._named, autocommit=True)
            return await self._answer(_Line(connection), asking())
        except psycopg.Error as error:
            kind = OperationalError if isinstance(error, psycopg.OperationalError) else DBAPIError
            raise unavailable(kind(None, None, error)) from error

    async def _answer(self, line: "_Line", asking: Asking[T]) -> T:
        try:
            question = next(asking)
            while True:
                question = asking.send(await line.rows(question))
        except StopIteration as done:
            self._idle.append(line)
            answer: T = done.value
            return answer
        except BaseException:
            await line.close()
            raise

    async def close(self) -> None:
        """Ends the connections that nobody uses."""
        while self._idle:
            await self._idle.pop().close()


class _Line:
    """One connection, spoken to in the server's own words: the driver's way to a row costs four times as much. One question at a time."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection, self._server = connection, connection.pgconn
        self._loop = asyncio.get_running_loop()
        self._socket = self._server.socket
        self._types = Transformer(connection)
        self._prepared: dict[str, bytes] = {}
        self._answer: asyncio.Future[PGresult] | None = None
        self._loop.add_reader(self._socket, self._readable)

    async def rows(self, question: Question) -> list[Any]:
        """The rows of an answer. Raises as the driver does."""
        name = self._prepared.get(question.sql)
        if name is None:
            name = b"glance_%d" % len(self._prepared)
            self._server.send_prepare(name, question.sql.format(_AMONG).encode())
            await self._result(ExecStatus.COMMAND_OK)
            self._prepared[question.sql] = name
        self._server.send_query_prepared(name, [orjson.dumps(question.values)])
        found = await self._result(ExecStatus.TUPLES_OK)
        self._types.set_pgresult(found)
        return self._types.load_rows(0, found.ntuples, tuple)

    async def close(self) -> None:
        """Also while an answer is under way."""
        self._let_go()
        await self._connection.close()

    async def _result(self, wanted: ExecStatus) -> PGresult:
        self._answer = self._loop.create_future()
        if self._server.flush():
            self._loop.add_writer(self._socket, self._writable)
        try:
            result = await self._answer
        finally:
            self._answer = None
        if result.status != wanted:
            error = psycopg.errors.error_from_result(result)
            # What is said last of a connection that the server ended has no code.
            raise psycopg.OperationalError(str(error)) if self._server.status == ConnStatus.BAD else error
        return result

    def _writable(self) -> None:
        try:
            if not self._server.flush():
                self._loop.remove_writer(self._socket)
        except psycopg.Error as error:
            self._break(error)

    def _readable(self) -> None:
        try:
            self._server.consume_input()
            if self._answer is None or self._server.is_busy():
                return
            last = None
            while (result := self._server.get_result()) is not None:
                last = result
        except psycopg.Error as error:
            self._break(error)
            return
        if last is not None and not self._answer.done():
            self._answer.set_result(last)

    def _break(self, error: psycopg.Error) -> None:
        """The server has hung up: whoever waits hears it, and so does whoever asks next."""
        self._let_go()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    def _let_go(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
