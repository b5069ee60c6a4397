"""Two stores that hold the same events, resolved by different rules: whose profiles differ, and how. In SQL over two SQLite files,
so that memory does not grow with their size."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

SHOWN: Final = 20  # ids of a profile in an example


class Group(NamedTuple):
    """A profile in an example: its id, some of its ids, and how many there are."""

    profile: str
    ids: Sequence[str]
    size: int


class Example(NamedTuple):
    """What the same ids are under each of the rules."""

    present: Sequence[Group]
    other: Sequence[Group]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How `other` differs. Counts are of profiles, users and accounts alike:

    `same` have the same ids on both sides; `split` become several; `merged` are those that several become; `renamed`
    have the same ids under another profile id; `regrouped` are both split and joined with others, or have gained or lost ids.
    `gained` and `lost` are ids that belong to a profile on one side only."""

    present: int
    other: int
    same: int
    split: int
    merged: int
    renamed: int
    regrouped: int
    gained: int
    lost: int
    unresolved: tuple[int, int]  # events without a profile
    refused: Mapping[str, tuple[int, int]]  # ids that a rule refused, by rule
    examples: Mapping[str, Sequence[Example]] = field(default_factory=dict)

    @property
    def differs(self) -> bool:
        """Whether the other rules change anything."""
        return (
            bool(self.split or self.merged or self.renamed or self.regrouped or self.gained or self.lost)
            or self.unresolved[0] != self.unresolved[1]
            or any(before != after for before, after in self.refused.values())
        )


_PAIRED: Final = """
ATTACH :other AS other;
CREATE TEMP TABLE was (key TEXT PRIMARY KEY, root TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO was WITH RECURSIVE
  tree(root, id) AS (SELECT id, id FROM main.profiles WHERE merged_into IS NULL
                     UNION ALL SELECT tree.root, one.id FROM tree JOIN main.profiles AS one ON one.merged_into = tree.id)
  SELECT nodes.key, tree.root FROM main.nodes JOIN tree ON tree.id = nodes.profile;
CREATE TEMP TABLE now (key TEXT PRIMARY KEY, root TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO now WITH RECURSIVE
  tree(root, id) AS (SELECT id, id FROM other.profiles WHERE merged_into IS NULL
                     UNION ALL SELECT tree.root, one.id FROM tree JOIN other.profiles AS one ON one.merged_into = tree.id)
  SELECT nodes.key, tree.root FROM other.nodes JOIN tree ON tree.id = nodes.profile;
CREATE INDEX temp.was_by_root ON was (root);
CREATE INDEX temp.now_by_root ON now (root);
CREATE TEMP TABLE pairs AS
  SELECT was.root AS a, now.root AS b, count(*) AS shared FROM was JOIN now USING (key) GROUP BY 1, 2;
CREATE INDEX temp.pairs_by_a ON pairs (a);
CREATE INDEX temp.pairs_by_b ON pairs (b);
CREATE TEMP TABLE judged AS
  SELECT a, b, shared,
    (SELECT count(*) FROM pairs AS x WHERE x.a = pairs.a) AS becomes,
    (SELECT count(*) FROM pairs AS x WHERE x.b = pairs.b) AS comes_of,
    (SELECT count(*) FROM was WHERE root = pairs.a) AS had,
    (SELECT count(*) FROM now WHERE root = pairs.b) AS has
  FROM pairs;
CREATE INDEX temp.judged_by_a ON judged (a);
CREATE INDEX temp.judged_by_b ON judged (b);
"""

_DIFFERENT: Final = """
SELECT min(key) FROM was WHERE root NOT IN (
  SELECT a FROM judged WHERE becomes = 1 AND comes_of = 1 AND shared = had AND shared = has
) GROUP BY root
UNION SELECT min(key) FROM now WHERE root NOT IN (SELECT b FROM judged) GROUP BY root
ORDER BY 1
"""

_CASES: Final[Mapping[str, tuple[str, str]]] = {
    # what is counted, and when
    "same": ("a", "becomes = 1 AND comes_of = 1 AND a = b AND shared = had AND shared = has"),
    "renamed": ("a", "becomes = 1 AND comes_of = 1 AND a <> b AND shared = had AND shared = has"),
    "split": ("a", "becomes > 1 AND NOT EXISTS (SELECT 1 FROM judged AS x WHERE x.a = judged.a AND x.comes_of > 1)"),
    "merged": ("b", "comes_of > 1 AND NOT EXISTS (SELECT 1 FROM judged AS x WHERE x.b = judged.b AND x.becomes > 1)"),
    "regrouped": (
        "a",
        """becomes > 1 AND EXISTS (SELECT 1 FROM judged AS x WHERE x.a = judged.a AND x.comes_of > 1)
           OR becomes = 1 AND comes_of = 1 AND (shared < had OR shared < has)""",
    ),
}


def compare(present: Path, other: Path, *, examples: int) -> Comparison:
    """Compares the stores of two files that nobody writes to, with up to `examples` of each kind of difference."""
    with _paired(present, other) as connection:
        one = _One(connection)
        counts = {
            name: one.number(f"SELECT count(DISTINCT {what}) FROM judged WHERE {when}")
            for name, (what, when) in _CASES.items()
        }
        return Comparison(
            **counts,
            present=one.number("SELECT count(*) FROM main.profiles WHERE merged_into IS NULL"),
            other=one.number("SELECT count(*) FROM other.profiles WHERE merged_into IS NULL"),
            gained=one.number("SELECT count(*) FROM now WHERE key NOT IN (SELECT key FROM was)"),
            lost=one.number("SELECT count(*) FROM was WHERE key NOT IN (SELECT key FROM now)"),
            unresolved=one.both("SELECT coalesce(sum(unresolved), 0) FROM {}.intake"),
            refused=one.refused(),
            examples={name: one.examples(name, examples) for name in _CASES if name != "same" and counts[name]},
        )


def different(present: Path, other: Path) -> Iterator[str]:
    """An id of every profile of either side that has other ids on the other one. Of the present side, only the tables of ids and
    profiles are asked."""
    with _paired(present, other) as connection:
        for (key,) in connection.execute(_DIFFERENT):
            yield str(key)


@contextmanager
def _paired(present: Path, other: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(present)) as connection:
        for statement in _PAIRED.split(";\n"):
            connection.execute(statement, {"other": str(other)} if ":other" in statement else {})
        yield connection


class _One:
    """Questions to the two stores."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def number(self, sql: str) -> int:
        (found,) = self._connection.execute(sql).fetchone()
        return int(found)

    def both(self, sql: str) -> tuple[int, int]:
        return self.number(sql.format("main")), self.number(sql.format("other"))

    def refused(self) -> Mapping[str, tuple[int, int]]:
        sql = "SELECT violation, sum(count) FROM {}.violations GROUP BY 1"
        before, after = (dict(self._connection.execute(sql.format(name)).fetchall()) for name in ("main", "other"))
        return {name: (before.get(name, 0), after.get(name, 0)) for name in sorted({*before, *after})}

    def examples(self, case: str, most: int) -> Sequence[Example]:
        """The largest ones."""
        what, when = _CASES[case]
        sql = f"SELECT {what} FROM judged WHERE {when} GROUP BY 1 ORDER BY max(had + has) DESC, 1 LIMIT ?"
        chosen = [str(root) for (root,) in self._connection.execute(sql, (most,))]
        return [self._example(root, what) for root in chosen]

    def _example(self, root: str, what: str) -> Example:
        other = "b" if what == "a" else "a"
        sql = f"SELECT {other} FROM pairs WHERE {what} = ? ORDER BY shared DESC, 1 LIMIT ?"
        met = [str(one) for (one,) in self._connection.execute(sql, (root, SHOWN))]
        ours, theirs = ([root], met) if what == "a" else (met, [root])
        return Example([self._group("was", one) for one in ours], [self._group("now", one) for one in theirs])

    def _group(self, table: str, root: str) -> Group:
        sql = f"SELECT key FROM {table} WHERE root = ? ORDER BY key LIMIT ?"
        ids = [str(key) for (key,) in self._connection.execute(sql, (root, SHOWN))]
        return Group(root, ids, self._size(table, root))

    def _size(self, table: str, root: str) -> int:
        (found,) = self._connection.execute(f"SELECT count(*) FROM {table} WHERE root = ?", (root,)).fetchone()
        return int(found)
