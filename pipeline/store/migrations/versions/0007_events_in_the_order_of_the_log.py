"""events in the order of the log, and on SQLite their indexes as tables that grow by generations"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_HASHED = 1 << 14  # keys at a time


def upgrade() -> None:
    op.create_table("event_keys", *_columns("hash", "partition", "offset"), sqlite_with_rowid=False)
    op.create_table("event_keys_new", *_columns("generation", "hash", "partition", "offset"), sqlite_with_rowid=False)
    op.create_table(
        "event_times", *_columns("generation", "node", "at", "partition", "offset"), sqlite_with_rowid=False
    )
    op.create_table(
        "event_spans",
        sa.Column("generation", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("generation"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.drop_constraint("events_pkey", "events")
        op.create_index("events_by_key", "events", ["key"], unique=True)
    else:
        _rebuild('"partition", "offset"')
        _index()


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("events_by_key", table_name="events")
        op.create_primary_key("events_pkey", "events", ["key"])
    else:
        _rebuild('"key"')
        op.create_index("events_by_node", "events", ["node", "at"], unique=False)
    for name in ("event_spans", "event_times", "event_keys_new", "event_keys"):
        op.drop_table(name)


_TYPES = {
    "generation": sa.Integer,
    "hash": sa.BigInteger,
    "partition": sa.SmallInteger,
    "offset": sa.BigInteger,
    "node": sa.String,
    "at": sa.BigInteger,
}


def _columns(*names: str) -> list[sa.schema.SchemaItem]:
    columns = [sa.Column(name, _TYPES[name](), autoincrement=False, nullable=False) for name in names]
    return [*columns, sa.PrimaryKeyConstraint(*names)]


def _rebuild(key: str) -> None:
    """SQLite's table again, in another order."""
    op.execute("ALTER TABLE events RENAME TO events_before")
    op.execute(
        f"""CREATE TABLE events (
            "key" BLOB NOT NULL, "partition" SMALLINT NOT NULL, "offset" BIGINT NOT NULL, profile VARCHAR NOT NULL,
            node VARCHAR NOT NULL, processed_at BIGINT NOT NULL, at BIGINT DEFAULT '0' NOT NULL, PRIMARY KEY ({key})
        ) WITHOUT ROWID"""
    )
    names = '"key", "partition", "offset", profile, node, processed_at, at'
    op.execute(f"INSERT INTO events ({names}) SELECT {names} FROM events_before ORDER BY {key}")
    op.execute("DROP TABLE events_before")


def _index() -> None:
    """What is there is one generation, the first: the rest follows from what came after it."""
    connection = op.get_bind()
    rows = connection.exec_driver_sql('SELECT "key", "partition", "offset" FROM events')
    while some := rows.fetchmany(_HASHED):
        connection.exec_driver_sql(
            "INSERT INTO event_keys VALUES (?, ?, ?)",
            [(int.from_bytes(key[:8], "big", signed=True), *place) for key, *place in some],
        )
    op.execute(
        """INSERT INTO event_times SELECT 0, node, at, "partition", "offset" FROM events WHERE node <> ''
           ORDER BY node, at, "partition", "offset\""""
    )
    op.execute("INSERT INTO event_spans SELECT 0, min(at), max(at) FROM event_times HAVING count(*) > 0")
