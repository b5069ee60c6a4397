"""What changes events between the filter and the mapping: fields that may not leave, and the destination's insert function."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from destinations.contract import Filtered, Outcome, Rejected, Retry
from pipeline.delivery.decide import FILTERED_BY_RULES
from pipeline.delivery.lanes import Item, Lane
from pipeline.delivery.shared import whole
from pipeline.functions.installed import Insert
from pipeline.functions.shape import changed
from pipeline.language.rules import Shape, Withheld
from schemas.events import Resolved


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


def shaping(shape: Shape | None, insert: Insert | None) -> Insert | None:
    """Takes fields out of events before the function, if there is one, gets them."""
    if shape is None:
        return insert

    async def shaped(events: Sequence[Resolved]) -> Sequence[Resolved | Outcome]:
        made = [_shaped(shape, one) for one in events]
        if insert is None:
            return made
        going = [one for one in made if isinstance(one, Resolved)]
        answers = iter(await insert(going) if going else ())
        return [next(answers) if isinstance(one, Resolved) else one for one in made]

    return shaped


def _shaped(shape: Shape, resolved: Resolved) -> Resolved | Outcome:
    event = whole(resolved)
    try:
        made = shape(event)
        if made is event:
            return resolved
        return replace(resolved, event=changed(resolved.event, made), context=None)
    except Withheld:
        return Filtered(FILTERED_BY_RULES)
    except ValueError as error:
        return Rejected(f"FILTERED_FIELDS_NEEDED: {error}")
