"""The `identity` section of `millrace.yaml`: what names a person, and the rules by which events become one profile."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal

import re2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

Collection = Literal["users", "accounts"]
Window = Literal["ever", "weekly", "monthly", "annually"]

DAY: Final = 86_400_000_000  # microseconds
WINDOWS: Final[Mapping[Window, int]] = {"ever": 0, "weekly": 7 * DAY, "monthly": 30 * DAY, "annually": 365 * DAY}
WINDOWED_MOST: Final = 1_000  # times of additions that a profile keeps of one type

BUILT_IN: Final[dict[str, Collection]] = {
    "user_id": "users",
    "email": "users",
    "anonymous_id": "users",
    "android.id": "users",
    "android.idfa": "users",
    "android.push_token": "users",
    "ios.id": "users",
    "ios.idfa": "users",
    "ios.push_token": "users",
    "ga_client_id": "users",
    "group_id": "accounts",
}
"""The types there are without a word of configuration."""

LEGACY: Final[dict[str, Collection]] = {"cross_domain_id": "users", "braze_id": "users"}
"""Types with a place of their own on the event, which are read once they are named."""


def _type_name(name: str) -> str:
    if not re2.fullmatch(r"[a-z][a-z0-9_.-]{0,62}", name):
        raise ValueError("is not a type; start with a lower-case letter, then lower-case letters, digits, _ . or -")
    if name == "profile_id":
        raise ValueError("profile_id addresses profiles by their own ids; choose another name")
    return name


def _pattern(text: str) -> str:
    options = re2.Options()
    options.log_errors, options.max_mem = False, 1 << 20
    try:
        re2.compile(text, options)
    except re2.error as error:
        said = (
            error.args[0].decode(errors="replace") if error.args and isinstance(error.args[0], bytes) else "too large"
        )
        raise ValueError(
            f"is not a regular expression of RE2 ({said}); it knows no look-around and no back-references"
        ) from None
    return text


TypeName = Annotated[str, AfterValidator(_type_name)]
Pattern = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_pattern)]
Value = Annotated[str, Field(min_length=1, max_length=500)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BlockedConfig(_Model):
    """Values that name nobody: they stay in the event, and take no part in identity."""

    values: tuple[Value, ...] = Field((), description="Exact values, whatever their case.")
    patterns: tuple[Pattern, ...] = Field(
        (), description="Regular expressions (RE2), found anywhere in the value: anchor them with ^ and $."
    )
    suggested: bool = Field(
        True, description="Block what is never an id as well: zeroes and dashes, -1, null, anonymous."
    )


class IdTypeConfig(_Model):
    """One type of external id. What is left out is as it is built in."""

    enabled: bool = Field(True, description="A type that is not is neither read nor matched.")
    collection: Collection | None = Field(
        None, description="Whom it names: users, or accounts (which group calls are about). users when left out."
    )
    traits: tuple[Annotated[str, Field(min_length=1, max_length=128)], ...] = Field(
        (),
        description="Names of traits or properties that hold it, found in camelCase and in snake_case: traits and context.traits of "
        "identify and group calls, properties and context.traits of track, page and screen calls.",
    )
    limit: int | None = Field(
        None, ge=1, le=1_000_000, description="Most values on one profile: 1 of user_id, 5 of any other when left out."
    )
    window: Window = Field(
        "ever", description="What the limit counts: every value, or those added within a week, 30 days or 365 days."
    )
    case_sensitive: bool | None = Field(
        None, description="Whether values that differ in case differ: all do but e-mail addresses when left out."
    )
    latest_owner: bool = Field(
        False,
        description="It belongs to whoever was seen with it last, as push tokens do: it joins no two people, and leaves its profile for that "
        "of another person's event. Such types are trusted less than all others.",
    )
    blocked: BlockedConfig = Field(
        default=BlockedConfig(values=(), patterns=(), suggested=True), description="Values that name nobody."
    )

    @model_validator(mode="after")
    def _countable(self) -> "IdTypeConfig":
        if self.window != "ever" and (self.limit or 0) > WINDOWED_MOST:
            raise ValueError(f"a limit with a window is {WINDOWED_MOST:,} at most; lower it, or count `ever`")
        return self


class IdentityConfig(_Model):
    """How events become profiles. A change holds for events from then on."""

    types: dict[TypeName, IdTypeConfig] = Field(
        default_factory=dict, description="Id types by name: new ones, and what differs from the built-in ones."
    )
    priority: tuple[TypeName, ...] = Field(
        ("user_id", "email"),
        min_length=1,
        description="The most trusted types first; others follow in alphabetical order. Of an event that breaks a limit, the least "
        "trusted id is left out.",
    )
    merges_per_profile: int = Field(1_000, ge=0, description="Most merges that make up one profile.")
    ids_per_profile: int = Field(10_000, ge=1, description="Most external ids on one profile.")
    email_in_properties: bool = Field(
        True, description="properties.email of track, page and screen calls is an e-mail address of the person."
    )
    minimal_demotion: bool = Field(
        False, description="Leave out only ids that have a part in what a limit forbids, still the least trusted first."
    )
    alias_identifies: bool = Field(
        False,
        description="An alias call's previousId is a user_id of the same person; user_id needs a limit above 1 for it to join two.",
    )

    @field_validator("priority")
    @classmethod
    def _once(cls, names: Sequence[str]) -> Sequence[str]:
        twice = [name for number, name in enumerate(names) if name in names[:number]]
        if twice:
            raise ValueError(f"{twice[0]} is named twice; keep one")
        return names

    @field_validator("types")
    @classmethod
    def _movable(cls, types: dict[str, IdTypeConfig]) -> dict[str, IdTypeConfig]:
        for name, one in types.items():
            accounts = (one.collection or BUILT_IN.get(name)) == "accounts"
            if one.latest_owner and (accounts or name == "user_id"):
                raise ValueError(f"{name} cannot have latest_owner: it names its owner; set it for ids of devices")
        return types

    def known(self) -> list[str]:
        """Every type there is, those not enabled too."""
        return sorted(BUILT_IN.keys() | self.types.keys())
