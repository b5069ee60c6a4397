"""Records of `profile-changes`: as Avro has them, over versions, and whatever bytes come."""

from importlib.resources import files
from io import BytesIO
from typing import Any

import fastavro
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.changes import FRAMING, KINDS, Cause, ProfileChange, Removed, decode_change, encode_change
from schemas.events import ExternalId

FOLDER = files("schemas") / "avro"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
times = st.integers(-(1 << 62), 1 << 62)
changes = st.builds(
    ProfileChange,
    id=texts,
    kind=st.sampled_from(KINDS),
    profile=texts,
    seq=times,
    cause=st.builds(Cause, texts, texts, texts, times, times, st.none() | texts),
    collection=st.sampled_from(["users", "accounts"]),
    other=st.none() | texts,
    profiles=st.lists(texts, max_size=3).map(tuple),
    ids=st.lists(st.builds(ExternalId, texts, texts), max_size=3).map(tuple),
    removed=st.lists(st.builds(Removed, texts, texts), max_size=3).map(tuple),
)
CHANGE = ProfileChange(
    "merged:mrg_1", "merged", "use_1", 9, Cause("web", "m1", "track", 7, 8, "Opened"), "users", "use_2", ("use_2",)
)


def record(change: ProfileChange) -> dict[str, Any]:
    fields = change._asdict() | change.cause._asdict()
    del fields["cause"]
    ids = [{"type": one.type, "id": one.value} for one in change.ids]
    removed = [one._asdict() for one in change.removed]
    return fields | {"ids": ids, "removed": removed, "profiles": list(change.profiles)}


def parsed(name: str) -> Any:
    schema = orjson.loads((FOLDER / name).read_bytes())
    for field in schema["fields"]:
        if isinstance(field["type"], dict) and "logicalType" in field["type"]:
            field["type"] = field["type"]["type"]
    return fastavro.parse_schema(schema)


@given(changes)
def test_a_change_is_written_as_fastavro_writes_it_and_read_as_it_was(change: ProfileChange) -> None:
    value = encode_change(change)
    assert value == FRAMING.encode(record(change))
    assert decode_change(value) == change


def test_text_that_is_no_unicode_does_not_stop_a_change() -> None:
    lone = CHANGE._replace(ids=(ExternalId("user_id", "a\ud800b"),))
    assert decode_change(encode_change(lone)).ids == (ExternalId("user_id", "a?b"),)


@given(st.binary())
def test_any_bytes_are_a_change_or_a_value_error(junk: bytes) -> None:
    for value in (junk, FRAMING.header + junk):
        try:
            decode_change(value)
        except ValueError:
            continue


@given(st.data())
def test_a_value_that_was_cut_is_a_value_error(data: st.DataObject) -> None:
    value = encode_change(CHANGE)
    with pytest.raises(ValueError, match="not a profile change"):
        decode_change(value[: data.draw(st.integers(0, len(value) - 1))])


HISTORY = sorted(one.name for one in (FOLDER / "history").iterdir() if one.name.startswith("profile_change."))


@pytest.mark.parametrize("version", HISTORY)
def test_every_past_version_is_read_with_the_current_schema_and_the_other_way_round(version: str) -> None:
    old, new = parsed(f"history/{version}"), parsed("profile_change.avsc")
    for writer, reader in ((old, new), (new, old)):
        out = BytesIO()
        fastavro.schemaless_writer(out, writer, record(CHANGE))
        out.seek(0)
        read: Any = fastavro.schemaless_reader(out, writer, reader)
        assert read == {field: record(CHANGE)[field] for field in read}


def test_the_current_schema_is_the_last_of_the_history() -> None:
    newest = max(HISTORY, key=lambda one: int(one.split(".")[1][1:]))
    assert (FOLDER / "profile_change.avsc").read_text() == (FOLDER / "history" / newest).read_text()
