"""What functions of the customer's have printed: ids of a person who is deleted are overwritten there, where they stand."""

import mmap
import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

SHORTEST: Final = 4  # characters of a value that is looked for: shorter ones stand in every line


def blacken(folder: Path, values: Collection[str]) -> int:
    """Overwrites each of these values with stars; how many places that were. Whoever appends meanwhile is not disturbed."""
    wanted = sorted({value for value in values if len(value) >= SHORTEST}, key=len, reverse=True)
    if not wanted or not folder.is_dir():
        return 0
    pattern = re.compile(b"|".join(re.escape(value.encode(errors="surrogatepass")) for value in wanted), re.IGNORECASE)
    return sum(_blacken(path, pattern) for path in sorted(folder.rglob("*")) if path.is_file() and path.stat().st_size)


def _blacken(path: Path, pattern: re.Pattern[bytes]) -> int:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as text:
        places = [match.span() for match in pattern.finditer(text)]
        for start, end in places:
            text[start:end] = b"*" * (end - start)
        text.flush()
    return len(places)
