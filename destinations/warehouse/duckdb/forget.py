"""What is deleted of people, and the file written anew without it."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from destinations.contract import Person
from destinations.warehouse.arrow import array_of
from destinations.warehouse.duckdb.file import LOADED, File, literal, quoted
from destinations.warehouse.inference import Type


def without(file: File, people: Sequence[Person]) -> int:
    """Deletes every row of these people, within a transaction; how many."""
    wanted = {
        "profile": [one for person in people for one in person.profiles],
        "formerly": [one for person in people for one in person.formerly],
        "user": _ids_of(people, "user_id"),
        "anonymous": _ids_of(people, "anonymous_id"),
    }
    count = 0
    for (schema, table), columns in sorted(file.tables.items()):
        if table == LOADED:
            continue
        where = f"{quoted(schema)}.{quoted(table)}"
        theirs = _theirs(columns, table)
        if not theirs:
            continue
        with ExitStack() as given:
            for name, values in wanted.items():
                given.enter_context(file.given(f"_{name}", {"id": array_of("text", values)}))
            if table == "accounts":  # nobody's own: only who was seen with it goes
                file.execute(f"UPDATE {where} SET profile_id = NULL WHERE profile_id IN (SELECT id FROM _profile)")
                continue
            told = "id" if "id" in columns else "NULL"
            gone = file.execute(f"DELETE FROM {where} WHERE {' OR '.join(theirs)} RETURNING {told}")
        count += len(gone)
        if gone and told == "id" and (schema, LOADED) in file.tables and table != "users":
            with file.given("_ids", {"id": array_of("text", [one for (one,) in gone])}):
                loaded = f"{quoted(schema)}.{quoted(LOADED)}"
                file.execute(f"DELETE FROM {loaded} WHERE id IN (SELECT id FROM _ids)")
    return count


def _ids_of(people: Sequence[Person], kind: str) -> list[str]:
    return [value for person in people for of, value in person.ids if of == kind]


def _theirs(columns: Mapping[str, Type], table: str) -> list[str]:
    """What makes a row one of theirs. A profile that was taken apart may still be somebody's: of its rows, those with their ids."""
    named = []
    if "user_id" in columns:
        named.append("user_id IN (SELECT id FROM _user)")
    if "anonymous_id" in columns:
        named.append("anonymous_id IN (SELECT id FROM _anonymous)")
    if table == "users":
        named.append("id IN (SELECT id FROM _user)")
    found = []
    if "profile_id" in columns:
        found.append("profile_id IN (SELECT id FROM _profile)")
        if named:
            found.append(f"(profile_id IN (SELECT id FROM _formerly) AND ({' OR '.join(named)}))")
    if table == "users":
        found.append("id IN (SELECT id FROM _user)")
    return found + [
        f"{column} IN (SELECT id FROM _profile)"
        for column in ("segment_id", "canonical_segment_id")
        if column in columns
    ]


def rewritten(path: Path, memory_mb: int) -> None:
    """Writes the file anew, since deleted rows stay in the old one's free blocks. Whoever has the old one open keeps it until they
    close it."""
    import duckdb

    whole = path.resolve()
    fresh = whole.with_name(f"{whole.name}.rewriting")
    for left in (fresh, fresh.with_name(f"{fresh.name}.wal")):
        left.unlink(missing_ok=True)
    con = duckdb.connect(str(fresh), config={"memory_limit": f"{memory_mb}MiB", "threads": 1})
    try:
        own = con.execute("SELECT current_database()").fetchone()
        assert own is not None
        con.execute(f"ATTACH {literal(str(whole))} AS before (READ_ONLY)")
        con.execute(f"COPY FROM DATABASE before TO {quoted(own[0])}")
        con.execute("DETACH before")
    finally:
        con.close()
    descriptor = os.open(fresh, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    fresh.replace(whole)
    whole.with_name(f"{whole.name}.wal").unlink(missing_ok=True)
