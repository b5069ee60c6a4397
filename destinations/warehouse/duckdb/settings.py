"""What a warehouse in a DuckDB file may be told."""

from collections.abc import Collection, Sequence
from typing import Annotated

from pydantic import Field

from destinations.contract import Settings
from destinations.warehouse.naming import schema_name
from destinations.warehouse.profiles import DEFAULT_SCHEMA


class DuckDBSettings(Settings):
    """Where the warehouse is, and what it may use."""

    path: str = Field("warehouse.duckdb", min_length=1, description="The file; relative to the data folder.")
    memory_mb: int = Field(512, ge=64, description="Memory that DuckDB may use, in MiB.")
    max_tables: int = Field(
        1_000, ge=1, description="Most event tables of one source. Further events are kept in tracks, as JSON."
    )
    max_columns: int = Field(
        1_000, ge=1, description="Most columns made from properties in one table. Further ones are kept as JSON."
    )
    profiles: bool | Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,62}$")] = Field(
        False, description="Tables of who is who: true for a schema called profiles, or the name of another."
    )

    @property
    def profiles_schema(self) -> str | None:
        """The schema of the tables of who is who; None: they are not wanted."""
        return (DEFAULT_SCHEMA if self.profiles is True else self.profiles) or None

    def faults(self, sources: Collection[str]) -> Sequence[tuple[str, str]]:
        """Tables of who is who would overwrite those of a source in the same schema."""
        taken = [one for one in sources if schema_name(one) == self.profiles_schema]
        return [("profiles", f"is the schema of source {one} too; name another") for one in taken]
