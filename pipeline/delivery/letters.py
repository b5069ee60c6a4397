"""Dead letters: events that a destination will never take, for the log."""

from pipeline.delivery.lanes import Item
from pipeline.delivery.poll import micros
from pipeline.log import Record
from pipeline.log.contract import MAX_RECORD_BYTES
from schemas.dead_letters import DeadLetter, encode_dead_letter
from schemas.topics import RESOLVED


def letter(destination: str, item: Item, now: float) -> Record:
    """The record of a dead event. One that the envelope would make too large goes without its bytes: the ledger has
    them."""
    key = item.lane.profile.encode(errors="surrogatepass")
    full = DeadLetter(
        stage="delivery",
        destination=destination,
        reason=item.reason[:1_000],
        attempts=item.attempts,
        at=micros(now),
        topic=RESOLVED,
        partition=item.lane.partition.number,
        offset=item.offset,
        value=item.value,
    )
    value = encode_dead_letter(full)
    if len(key) + len(value) > MAX_RECORD_BYTES:
        value = encode_dead_letter(full._replace(value=None))
    return Record(key, value, round(now * 1e3))
