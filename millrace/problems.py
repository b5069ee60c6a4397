"""Errors as a person reads them: what is wrong and what to do. What is not listed here is a bug and keeps its trace."""

import errno
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from schemas.errors import ConfigError, MillraceError

_DISK: Final = {
    errno.ENOSPC: "the disk is full; free space and start again, nothing that was acknowledged is lost",
    errno.EDQUOT: "the disk quota is used up; free space and start again, nothing that was acknowledged is lost",
    errno.EROFS: "the disk is read-only; mount it writable or name another folder with --data",
    errno.EACCES: "permission denied; mend the permissions or name another folder with --data",
}


def explained(error: BaseException) -> Sequence[str] | None:
    """One line per problem, or None for an error that nobody foresaw."""
    if isinstance(error, BaseExceptionGroup):
        parts = [explained(one) for one in error.exceptions]
        return None if None in parts else [line for part in parts if part is not None for line in part]
    if isinstance(error, ConfigError):
        return error.faults
    if isinstance(error, MillraceError):
        return [str(error)]
    if isinstance(error, OSError) and error.errno in _DISK:
        place = f"{error.filename}: " if error.filename else ""
        return [f"{place}{_DISK[error.errno]}"]
    return None


def without_password(url: str) -> str:
    """A URL fit for printing."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@", 1)
