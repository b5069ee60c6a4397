"""Errors named by what the caller should do.

MillraceError
├── ConfigError             stop before starting; says file, key, remedy
├── Refused                 the client's fault: a status and a code the SDK can read
├── Unavailable             ours or a service's fault: wait `after`, try again; nothing was acknowledged
├── PartitionLost           another member has it: drop the batch here, it is redelivered there
└── CredentialsRejected     pause that destination, tell the operator, lose nothing
"""

from collections.abc import Collection, Sequence


class MillraceError(Exception):
    """Every error that Millrace raises on purpose."""


class ConfigError(MillraceError):
    """The configuration or the environment cannot work. `faults` holds one line per fault, each with its remedy."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults: Sequence[str] = faults


class Refused(MillraceError):
    """A request that no retry can save. `code` is from the tracking API's list where it has one."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Unavailable(MillraceError):
    """Nothing was acknowledged; try again after `after` seconds."""

    def __init__(self, message: str, *, after: float = 1.0) -> None:
        super().__init__(message)
        self.after = after


class PartitionLost(MillraceError):
    """The partitions belong to another member now, which receives their uncommitted records again."""

    def __init__(self, partitions: Collection[int]) -> None:
        super().__init__(f"partitions {sorted(partitions)} belong to another member")
        self.partitions = frozenset(partitions)


class CredentialsRejected(MillraceError):
    """A service refused our credentials; nobody but the operator can mend that."""
