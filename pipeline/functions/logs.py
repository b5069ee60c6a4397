"""What functions print, in a file that stays small."""

import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MOST: Final = 1 << 20  # bytes of the file; the one before it is kept as `.1`


class LogFile:
    """Appends bytes; readable by nobody else, since authors print what they like."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def write(self, words: bytes) -> None:
        """Appends, and begins anew when the file is full."""
        if os.fstat(self._file).st_size + len(words) > MOST:
            os.close(self._file)
            os.replace(self._path, self._path.with_suffix(".log.1"))
            self._open()
        os.write(self._file, words)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
