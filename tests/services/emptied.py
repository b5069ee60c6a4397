"""Databases that have their tables, given to one test after the other. To empty one takes milliseconds; for a copy, PostgreSQL
writes three hundred files and waits for the disk."""

from typing import Final, LiteralString

import psycopg
from psycopg import sql

from tests.services.postgres import PostgresServer

PATIENCE: Final = 10  # seconds until a connection has ended that a test left
RESTING: Final = 1  # databases that are not given again yet: the server waits in steps of 100 ms for connections that are just ending
KEPT: Final = ("alembic_version",)  # what `migrate` itself writes

_CATALOGS: Final[tuple[LiteralString, ...]] = (
    "pg_attrdef",
    "pg_attribute",
    "pg_class",
    "pg_constraint",
    "pg_db_role_setting",
    "pg_index",
    "pg_namespace",
    "pg_policy",
    "pg_proc",
    "pg_rewrite",
    "pg_sequence",
    "pg_trigger",
    "pg_type",
)


class EmptiedDatabases:
    """Copies of the database at the URL `like`. Every one has its tables, and no row that `like` has not. One whose tables
    were changed is never given again. Methods block."""

    def __init__(self, server: PostgresServer, like: str) -> None:
        self._server, self._like = server, like
        self._used: list[str] = []
        self._mark: object = None  # of a copy, and so of all

    def take(self) -> str:
        """The URL of a database that nobody else has."""
        while len(self._used) > RESTING:
            url = self._used.pop(0)
            if self._emptied(url):
                return url
            self._server.drop_database(url)
        url = self._server.create_database(like=self._like)
        if self._mark is None:
            with psycopg.connect(url) as connection:
                self._mark = _mark(connection)
        return url

    def give_back(self, url: str) -> None:
        """Nobody needs it any more. It is emptied when somebody takes it: by then its connections have ended by themselves."""
        self._used.append(url)

    def _emptied(self, url: str) -> bool:
        """Whether it is empty now; else it is another one than it was."""
        with psycopg.connect(url) as connection:
            connection.execute(
                "select pg_terminate_backend(pid, %s) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()",
                [PATIENCE * 1000],
            )
            if _mark(connection) != self._mark:
                return False
            names = connection.execute("select tablename from pg_tables where schemaname = 'public'").fetchall()
            connection.execute(
                sql.SQL(";").join(
                    sql.SQL("delete from {}").format(sql.Identifier(name)) for (name,) in names if name not in KEPT
                )
            )
            connection.execute("select setval(seqrelid, seqstart, false) from pg_sequence")
        return True


def _mark(connection: psycopg.Connection) -> object:
    """Another one after every statement that defines something, and after every change to what is kept: each leaves rows of
    its own transaction in the catalogues, or fewer rows."""
    parts: list[sql.Composable] = [
        sql.SQL("(select json_build_array(count(*), max(xmin::text::bigint)) from {})").format(sql.Identifier(name))
        for name in _CATALOGS
    ]
    parts += [sql.SQL("(select json_agg({0}) from {0})").format(sql.Identifier(name)) for name in KEPT]
    return connection.execute(sql.SQL("select {}").format(sql.SQL(", ").join(parts))).fetchone()
