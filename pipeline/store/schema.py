"""The tables. This is the truth; `migrations/` is how to get here, and a test compares the two.

Times are UTC microseconds since 1970. JSON is text: it is read and written whole.

Identity (DESIGN: nodes, edges, profiles):
  node      an external id, `type:value`; its state (traits, counters) is what it alone contributed
  edge      evidence: two ids seen on one event
  profile   a connected component; its row caches the combination of its nodes. `merged_into` points at the survivor
  merge     one profile joined into another, with the event that caused it
  dispute   what two profiles differed on, in consent, when they merged
  split     a profile taken apart again, and what keeps it so
  resolution  a profile that came of other rules, once they were applied to what was recorded
  violation an id that a rule refused, with the first event that brought it
  move      an id that left its profile for that of its latest owner
  link      a user's node and an account's, seen on one event

Forgetting:
  regulations              what was asked for: delete, suppress, lift; how far it is, and the receipt
  regulation_destinations  what became of it at each destination
  tombstones               ids that were deleted, hashed, and when: older events with them do not pass
  suppressions             ids, hashed, with which no event passes
  deleted_profiles         ids of profiles that are gone
  erased                   places on `events` of what is gone: its bytes are erased there, and nobody gets it any more
  deletions                profiles and ids that went, of which `profile-changes` is still to be told
  privacy_key              what ids are hashed with
  scratches                folders in which recorded events are resolved once more, which deletions must reach

Reading:
  tokens         who may read profiles, and what of them
  profile_reads  who read which profile: one row per token, resource and hour

Books:
  events       one row per accepted event: dedupe key and where it stands in the log
  event_…      what SQLite finds them by
  positions    what the pipeline has applied to the database and emitted to `resolved`, per partition of `events`
  transformed  what functions of sources made of events that are applied and perhaps not emitted
  fences       the profiles that ids of such events were of before
  partings     the profiles that ids were taken out of, for the next event of theirs in each partition of `events`
  intake       counters of the pipeline, in the transaction of the positions they belong to
  usage        events, bytes and a sketch of the users of each month and source
  destination_positions, destination_counts, destination_batches    the same for each destination and partition of `resolved`
  destination_state    how each destination fares, for people
  exceptions   what cannot be told from a position: held back, waiting for a retry, delivered late, dead
  replays      recorded events sent to one destination again; the ledger's rows of each are under `destination:replay-id`
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

metadata: Final = MetaData()

profiles: Final = Table(
    "profiles",
    metadata,
    Column("id", String, primary_key=True),
    Column("created_at", BigInteger, nullable=False),
    Column("merged_into", String),
    Column("ids", Text, nullable=False),  # {type: count} of its external ids
    Column(
        "traits", Text, nullable=False
    ),  # {name: [timestamp, received_at, message_id, value, source]}; a null value is a tombstone
    Column("events", BigInteger, nullable=False),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False),
    Column("collection", String, nullable=False, server_default="users"),  # or accounts
    Column("seq", BigInteger, nullable=False, server_default="0"),  # when it was created in the serial order
    Column("source", String, nullable=False, server_default=""),  # of the event that created it
    Column("message_id", String, nullable=False, server_default=""),
    Column("last_source", String, nullable=False, server_default=""),  # of the latest event
    Column("last_message", String, nullable=False, server_default=""),
    Column("added", Text),  # {type: [when each id was added]} of types whose limit has a window
    Column("apart", Text),  # [split:side] of its nodes: two sides of one split never share a profile
    Column("merges", Integer, nullable=False, server_default="0"),  # how many made it: the profiles that lead here
    Column("consent", Text),  # as traits, by category
    Column("disputed", Text),  # {category: stamp}: what profiles differed on when they merged
    Index("profiles_by_survivor", "merged_into"),
    Index("profiles_by_activity", "last_seen", "id"),
)

nodes: Final = Table(
    "nodes",
    metadata,
    Column("key", String, primary_key=True),
    Column("profile", String),  # as of the last write; follow merged_into for the canonical one
    Column("traits", Text),
    Column("events", BigInteger, nullable=False, server_default="0"),
    Column("first_seen", BigInteger),
    Column("last_seen", BigInteger),
    Column("added_at", BigInteger),  # the time of the event that mapped it
    Column("home", String),  # the profile that it was first mapped to: what a split goes by
    Column("seq", BigInteger, nullable=False, server_default="0"),  # when it was mapped in the serial order
    Column("source", String, nullable=False, server_default=""),  # of the event that mapped it
    Column("message_id", String, nullable=False, server_default=""),
    Column("rules", Integer, nullable=False, server_default="0"),  # version of the identity configuration
    Column("last_source", String, nullable=False, server_default=""),  # of the latest event whose state it holds
    Column("last_message", String, nullable=False, server_default=""),
    Column("apart", Text),  # [split:side]
    Column("consent", Text),
    Column("former", String),  # the profile that the events it partitions stood under last, where that is another
    Index("nodes_by_profile", "profile"),
    # By bytes: under a language's collation, ids with a common beginning do not stand together.
    Index("nodes_by_prefix", "key", postgresql_ops={"key": "text_pattern_ops"}).ddl_if(dialect="postgresql"),
)

edges: Final = Table(
    "edges",
    metadata,
    Column("a", String, primary_key=True),
    Column("b", String, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("source", String, nullable=False),  # of the event that made it
    Column("message_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("rules", Integer, nullable=False),  # version of the identity configuration
    Column("seq", BigInteger, nullable=False, server_default="0"),  # when it was made in the serial order
    Index("edges_by_b", "b"),
)

merges: Final = Table(
    "merges",
    metadata,
    Column("id", String, primary_key=True),
    Column("survivor", String, nullable=False),
    Column("absorbed", String, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("source", String, nullable=False),
    Column("message_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("rules", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False, server_default="0"),
    Column("undone_by", String),  # the split that took it apart
    Index("merges_by_survivor", "survivor"),
    Index("merges_by_absorbed", "absorbed"),
)

disputes: Final = Table(
    "disputes",
    metadata,
    Column("merge", String, primary_key=True),
    Column("category", String, primary_key=True),  # of consent
    Column("stamp", Text, nullable=False),  # JSON, of the latest write that either profile had
)

splits: Final = Table(
    "splits",
    metadata,
    Column("id", String, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("profile", String, nullable=False),  # the one that was taken apart, and keeps its id
    Column("other", String, nullable=False),  # the one that came out
    Column("merge", String),  # what was undone, when it was a merge
    Column("detail", Text, nullable=False),  # JSON: the edges cut, the ids and profiles moved
    Column("lifted_at", BigInteger),  # set once the two may meet again
    Index("splits_by_profile", "profile"),
    Index("splits_by_other", "other"),
)

resolutions: Final = Table(
    "resolutions",
    metadata,
    Column("id", String, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("profile", String, nullable=False),  # the one that came of it
    Column("rules", Integer, nullable=False),  # version of the identity configuration
    Column("detail", Text, nullable=False),  # JSON: what is still to be told of it
    Index("resolutions_by_profile", "profile"),
)

violations: Final = Table(
    "violations",
    metadata,
    Column("profile", String, primary_key=True),  # that the event resolved to; empty when to none
    Column("key", String, primary_key=True),  # the id that was refused
    Column("violation", String, primary_key=True),
    Column("count", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("source", String, nullable=False),  # of the first event
    Column("message_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("rules", Integer, nullable=False),
    Index("violations_by_key", "key"),
)

links: Final = Table(
    "links",
    metadata,
    Column("node", String, primary_key=True),  # of a user
    Column("account", String, primary_key=True),  # node of an account: group_id:…
    Column("count", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("source", String, nullable=False),  # of the first event
    Column("message_id", String, nullable=False),
    Index("links_by_account", "account", "node"),
)

moves: Final = Table(
    "moves",
    metadata,
    Column("id", String, primary_key=True),
    Column("key", String, nullable=False),  # the id that moved
    Column("left_profile", String, nullable=False),  # canonical then, as the next one
    Column("joined", String, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("source", String, nullable=False),  # of the event that moved it
    Column("message_id", String, nullable=False),
    Column("type", String, nullable=False),
    Column("rules", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("was_home", String, nullable=False),  # how it was mapped until then
    Column("was_added_at", BigInteger, nullable=False),
    Column("was_seq", BigInteger, nullable=False),
    Column("was_source", String, nullable=False),
    Column("was_message_id", String, nullable=False),
    Index("moves_by_key", "key"),
    Index("moves_by_left_profile", "left_profile"),
    Index("moves_by_joined", "joined"),
)

identity_rules: Final = Table(
    "identity_rules",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("rules", Text, nullable=False),  # the configuration's `identity` section as JSON, keys sorted
)

tokens: Final = Table(
    "tokens",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("hash", String, nullable=False, unique=True),  # SHA-256 of the secret, which is kept nowhere
    Column("scopes", Text, nullable=False),  # JSON
    Column("traits", Text),  # JSON: the only ones it may read; null: all
    Column("per_second", Integer, nullable=False),  # requests to one process
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

profile_reads: Final = Table(
    "profile_reads",
    metadata,
    Column("profile", String, primary_key=True),
    Column("token", String, primary_key=True),
    Column("resource", String, primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),  # hours since 1970
    Column("count", BigInteger, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Index("profile_reads_by_hour", "hour"),
)

events: Final = Table(
    "events",
    metadata,
    Column("key", LargeBinary, nullable=False),  # 16 bytes: hash of source and messageId
    Column("partition", SmallInteger, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("profile", String, nullable=False),  # as applied; empty when unresolved
    Column("node", String, nullable=False),  # the node its state hangs on; empty when unresolved
    Column("processed_at", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False, server_default="0"),  # when it happened, never after it was received
    PrimaryKeyConstraint("partition", "offset").ddl_if(dialect="sqlite"),
    Index("events_by_key", "key", unique=True).ddl_if(dialect="postgresql"),
    Index("events_by_node", "node", "at").ddl_if(dialect="postgresql"),
    sqlite_with_rowid=False,
)

# The two indexes of SQLite, which `accepted` explains. Elsewhere they are empty.

event_keys: Final = Table(
    "event_keys",
    metadata,
    Column("hash", BigInteger, primary_key=True, autoincrement=False),  # the first half of the key
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

event_keys_new: Final = Table(
    "event_keys_new",
    metadata,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("hash", BigInteger, primary_key=True, autoincrement=False),
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

event_times: Final = Table(
    "event_times",
    metadata,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("node", String, primary_key=True),
    Column("at", BigInteger, primary_key=True, autoincrement=False),
    Column("partition", SmallInteger, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

event_spans: Final = Table(
    "event_spans",
    metadata,
    Column("generation", Integer, primary_key=True, autoincrement=False),
    Column("first_at", BigInteger, nullable=False),  # of the events in `event_times`
    Column("last_at", BigInteger, nullable=False),
)

refusals: Final = Table(
    "refusals",
    metadata,
    Column("partition", SmallInteger, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("source", String, nullable=False),
    Column("message_id", String, nullable=False),
    Column("code", String, nullable=False),
    Column("received_at", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("refusals_by_message", "message_id"),
    Index("refusals_by_time", "received_at", "partition", "offset"),
)

positions: Final = Table(
    "positions",
    metadata,
    Column("partition", SmallInteger, primary_key=True),
    Column("applied", BigInteger, nullable=False),  # next offset to apply
    Column("emitted", BigInteger, nullable=False),  # next offset whose resolved record may be missing
    Column("updated_at", BigInteger, nullable=False),
)

transformed: Final = Table(
    "transformed",
    metadata,
    Column("partition", SmallInteger, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("value", LargeBinary, nullable=False),  # the record as a source's function made it
)

fences: Final = Table(
    "fences",
    metadata,
    Column("partition", SmallInteger, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("profile", String, primary_key=True),
)

partings: Final = Table(
    "partings",
    metadata,
    Column("profile", String, primary_key=True),
    Column("partition", SmallInteger, primary_key=True),  # of `events`
    Column("left_profile", String, primary_key=True),
    Column("at", BigInteger, nullable=False),
)

intake: Final = Table(
    "intake",
    metadata,
    Column("source", String, primary_key=True),
    Column("partition", SmallInteger, primary_key=True),
    Column("accepted", BigInteger, nullable=False),
    Column("duplicates", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("unresolved", BigInteger, nullable=False),  # part of accepted: no identifier was left
)

usage: Final = Table(
    "usage",
    metadata,
    Column("month", String, primary_key=True),  # 2026-11, by when the event was received
    Column("source", String, primary_key=True),
    Column("partition", SmallInteger, primary_key=True),
    Column("events", BigInteger, nullable=False),  # accepted, each once
    Column("bytes", BigInteger, nullable=False),  # of their bodies
    Column("users", LargeBinary, nullable=False),  # a sketch: see pipeline/usage.py
)

destination_positions: Final = Table(
    "destination_positions",
    metadata,
    Column("destination", String, primary_key=True),
    Column("partition", SmallInteger, primary_key=True),
    Column("epoch", BigInteger, nullable=False),  # grows with each new owner; an owner of an older one writes nothing
    Column("offset", BigInteger, nullable=False),  # next offset to read
    Column("marks", Text, nullable=False),  # {origin partition: highest origin offset seen}
    Column("updated_at", BigInteger, nullable=False),
    Column("writes", BigInteger, nullable=False, server_default="0"),  # by owners: one that is repeated is known by it
)

destination_state: Final = Table(
    "destination_state",
    metadata,
    Column("destination", String, primary_key=True),
    Column("state", String, nullable=False),  # delivering, unreachable, paused, full, failed
    Column("since", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
)

destination_counts: Final = Table(
    "destination_counts",
    metadata,
    Column("destination", String, primary_key=True),
    Column("partition", SmallInteger, primary_key=True),
    Column("source", String, primary_key=True),
    Column("delivered", BigInteger, nullable=False),
    Column("filtered", BigInteger, nullable=False),
    Column("dead", BigInteger, nullable=False),  # that ever died
    Column("redriven", BigInteger, nullable=False, server_default="0"),  # of the dead: put back, to be tried again
    Column("purged", BigInteger, nullable=False, server_default="0"),  # of the dead: given up, or gone with a person
)

destination_batches: Final = Table(
    "destination_batches",
    metadata,
    Column("destination", String, primary_key=True),
    Column("partition", SmallInteger, primary_key=True),
    Column("next_offset", BigInteger, primary_key=True),
    Column("first_offset", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("filtered", Text, nullable=False),  # {reason: [[first offset, count], …]}
    Index("destination_batches_by_time", "at"),
)

destination_minutes: Final = Table(
    "destination_minutes",
    metadata,
    Column("destination", String, primary_key=True),
    Column("at", BigInteger, primary_key=True),  # its beginning
    Column("writer", String, primary_key=True),  # a process: it overwrites its own row
    Column("delivered", BigInteger, nullable=False),
    Column("retried", BigInteger, nullable=False),
    Column("rejected", BigInteger, nullable=False),
    Column("latency", Text, nullable=False),  # [[bucket, count], …], see pipeline/latency.py
    Column("causes", Text, nullable=False),  # [[code, message, count], …]
    Index("destination_minutes_by_time", "at"),
)

destination_totals: Final = Table(
    "destination_totals",
    metadata,
    Column("destination", String, primary_key=True),
    Column("name", String, primary_key=True),  # delivered, retried, rejected, latency:<bucket>
    Column("value", BigInteger, nullable=False),
)

destination_samples: Final = Table(
    "destination_samples",
    metadata,
    Column("destination", String, primary_key=True),
    Column("code", String, primary_key=True),
    Column("message", String, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("message_id", String, nullable=False),
    Column("request", Text, nullable=False),  # as people may see it
    Column("answer", Text, nullable=False),  # empty: there was none
)

destination_baselines: Final = Table(
    "destination_baselines",
    metadata,
    Column("destination", String, primary_key=True),
    Column("source", String, primary_key=True),  # empty: the row that says that the destination's were counted
    Column("accepted", BigInteger, nullable=False),  # that retention had removed before the destination was there
    Column("missed", BigInteger, nullable=False, server_default="0"),  # that it removed while that was not configured
    Column("off", BigInteger),  # what the books were off by when it was removed; null: it is configured
)

alerts: Final = Table(
    "alerts",
    metadata,
    Column("name", String, primary_key=True),
    Column("state", String, nullable=False),  # pending, firing, calming, ok; with "again"
    Column("since", BigInteger, nullable=False),
    Column("fired", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("remedy", Text, nullable=False),
    Column("told", Text, nullable=False),  # {channel: what it heard last}
)

alert_samples: Final = Table(
    "alert_samples",
    metadata,
    Column("name", String, primary_key=True),  # of a counter
    Column("at", BigInteger, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

scratches: Final = Table(
    "scratches",
    metadata,
    Column("id", String, primary_key=True),
    Column("work", String, nullable=False),  # the command that it is of
    Column("host", String, nullable=False),
    Column("path", String, nullable=False),
    Column("stale", SmallInteger, nullable=False),  # not 0: it may hold somebody who was deleted; 2: who is taken out
)

leases: Final = Table(
    "leases",
    metadata,
    Column("name", String, primary_key=True),  # of a task that one process at a time does
    Column("owner", String, nullable=False),
    Column("until", BigInteger, nullable=False),
)

exceptions: Final = Table(
    "exceptions",
    metadata,
    Column("destination", String, primary_key=True),
    Column("partition", SmallInteger, primary_key=True),
    Column("offset", BigInteger, primary_key=True),
    Column("state", String, nullable=False),  # held, retry, delivered, filtered, dead, again (put back), purged
    Column("source", String, nullable=False),
    Column("profile", String, nullable=False),
    Column("message_id", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("next_at", BigInteger, nullable=False),  # when to try again; when it ended, once it has
    Column("value", LargeBinary),  # the resolved record; gone once delivered
    Column("done", Text, nullable=False, server_default=""),  # names of the mappings that have delivered it
    Column("cause", String, nullable=False, server_default=""),  # of a dead one: what groups its reason with others
    Index("exceptions_by_state", "destination", "state", "partition", "offset"),
    # The dead alone pay for these two.
    Index(
        "exceptions_dead_by_cause",
        "destination",
        "cause",
        "next_at",
        "state",  # with it all that groups need is in the index
        sqlite_where=text("state = 'dead'"),
        postgresql_where=text("state = 'dead'"),
    ),
    Index(
        "exceptions_dead_by_message",
        "message_id",
        sqlite_where=text("state = 'dead'"),
        postgresql_where=text("state = 'dead'"),
    ),
)

replays: Final = Table(
    "replays",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("destination", String, nullable=False),
    Column("state", String, nullable=False),  # running, cancelling, done, cancelled
    Column("created_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("sources", Text, nullable=False),  # JSON; empty: all
    Column("filter", Text, nullable=False),  # in the filter language; empty: all
    Column("rate", Float, nullable=False),  # events a second
    Column("again", Boolean, nullable=False),  # also what was delivered before
    Column("ranges", Text, nullable=False),  # JSON {partition of resolved: [first offset, end]}
    Column("note", Text, nullable=False),  # why it stands still
)

regulations: Final = Table(
    "regulations",
    metadata,
    Column("id", String, primary_key=True),
    Column("kind", String, nullable=False),  # DELETE_ONLY, SUPPRESS_ONLY, …
    Column("status", String, nullable=False),  # INITIALIZED, RUNNING, PARTIAL_SUCCESS, FAILED, FINISHED
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("marks", Text, nullable=False),  # JSON: the ids, hashed
    Column("work", Text),  # JSON: the ids in clear and how far it is; gone once it has ended
    Column("receipt", Text, nullable=False),  # JSON: what was erased where, without anything personal
    Index("regulations_by_status", "status", "created_at"),
)

regulation_destinations: Final = Table(
    "regulation_destinations",
    metadata,
    Column("regulation", String, primary_key=True),
    Column("destination", String, primary_key=True),
    Column("status", String, nullable=False),  # INITIALIZED, RUNNING, NOT_SUPPORTED, FAILED, FINISHED
    # JSON {partition of `resolved`: offset}: told once the destination is that far; null: not yet
    Column("barrier", Text),
    Column("attempts", Integer, nullable=False),
    Column("next_at", BigInteger, nullable=False),
    Column("error", Text, nullable=False),
    Column("finished_at", BigInteger),
)

tombstones: Final = Table(
    "tombstones",
    metadata,
    Column("mark", LargeBinary, primary_key=True),  # 16 bytes: keyed hash of an id
    Column("kind", String, primary_key=True),  # person: older events do not pass; identifier: they lose the id
    Column("deleted_at", BigInteger, nullable=False),
)

suppressions: Final = Table(
    "suppressions",
    metadata,
    Column("mark", LargeBinary, primary_key=True),
    Column("id", String),  # in clear while the person's data is kept; null once it is deleted
    Column("regulation", String, nullable=False),
    Column("at", BigInteger, nullable=False),
)

deleted_profiles: Final = Table(
    "deleted_profiles",
    metadata,
    Column("profile", String, primary_key=True),
    Column("deleted_at", BigInteger, nullable=False),
    Column("regulation", String, nullable=False),
)

erased: Final = Table(
    "erased",
    metadata,
    Column("partition", SmallInteger, primary_key=True),  # of `events`
    Column("offset", BigInteger, primary_key=True),
    Column("profile", String, nullable=False),  # as applied; empty when it never was
    Column("regulation", String, nullable=False),  # empty: it came after the deletion, or was suppressed
    Column("at", BigInteger, nullable=False),
    Column("emitted", Integer, nullable=False),  # 1 once its record was seen on `resolved`
    Index("erased_by_regulation", "regulation", "emitted"),
    Index("erased_by_time", "at"),
)

deletions: Final = Table(
    "deletions",
    metadata,
    Column("id", String, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("kind", String, nullable=False),  # profile, identifier
    Column("profile", String, nullable=False),
    Column("type", String, nullable=False),  # of an identifier
    Column("hash", String, nullable=False),  # of an identifier: SHA-1 of type and value, as in a warehouse
)

privacy_key: Final = Table(
    "privacy_key",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),  # 1: there is one row
    Column("key", LargeBinary, nullable=False),
)
