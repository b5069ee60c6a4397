"""A destination's insert function, between the filter and the mapping."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from destinations.contract import Outcome, Retry
from pipeline.delivery.lanes import Item, Lane
from pipeline.functions.installed import Insert


@dataclass(slots=True)
class Inserted:
    """What a function left of a chunk. `going` are events that go on, `shown` the same as the function made them; `outcomes` is
    what became of the others. Events behind one that has to wait are in neither."""

    going: list[Item] = field(default_factory=list)
    shown: list[Item] = field(default_factory=list)
    outcomes: dict[Item, Outcome] = field(default_factory=dict)


async def through(insert: Insert, items: Sequence[Item]) -> Inserted:
    """Puts decoded events through the function. The events themselves stay as they were: a later attempt asks it again."""
    inserted = Inserted()
    made = await insert([item.resolved for item in items if item.resolved is not None])
    waiting: set[Lane] = set()
    for item, one in zip(items, made, strict=True):
        if item.lane in waiting:
            continue
        if isinstance(one, Outcome):
            inserted.outcomes[item] = one
            if isinstance(one, Retry):
                waiting.add(item.lane)
            continue
        shown = Item(item.lane, item.offset, item.source, item.message_id)
        shown.resolved = one
        inserted.going.append(item)
        inserted.shown.append(shown)
    return inserted
