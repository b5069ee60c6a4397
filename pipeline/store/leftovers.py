"""What SQLite leaves behind in the unused space of its pages, written over.

`secure_delete` zeroes a row where it lies. But a row that was moved before, as pages are split and joined, can still be read in the page it
came from, between that page's cell pointers and its cells (https://www.sqlite.org/fileformat.html#b_tree_pages). No statement
reaches these bytes, and writing the whole file anew for every deletion would stop the pipeline for minutes; hence they are zeroed in the file itself.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

_HEADER: Final = Struct(
    ">16xH2xB31xI44x"
)  # page size, bytes of each that SQLite leaves alone, largest root page (with auto-vacuum)
_CELLS_FROM: Final = {2: 12, 5: 12, 10: 8, 13: 8}
"""Where the cell pointers begin, by the type of a page: inner and leaf pages of indexes and tables."""
_CHUNK: Final = 1 << 20  # bytes read at once; pages are powers of two, so that a chunk has whole ones
MOST_PAGES: Final = 1 << 25
"""From here on the page numbers that other pages begin with can be mistaken for a type: 137 GB."""


class _Shape(NamedTuple):
    page: int  # bytes
    usable: int  # of them


def overwrite(path: Path) -> int | None:
    """How many pages of a database had something in their unused space, which is zeroed and durable now. None for a file whose pages cannot be told apart: it
    has to be written anew.

    The caller holds the write lock and the write-ahead log is empty, so that the file is all there is; readers may go on, to whom these
    bytes mean nothing. Connections may have such pages in memory, and would write them again as they were: the caller commits
    something before it lets go of the lock, upon which every connection but its own forgets what it has. Costs a look at every page, some 0.3 s per gigabyte."""
    descriptor = _opened(path, os.stat(path).st_ino)
    size = os.fstat(descriptor).st_size
    shape = _shape_of(os.pread(descriptor, _HEADER.size, 0), size)
    if shape is None:
        return None
    found = 0
    for at in range(0, size, _CHUNK):
        chunk = os.pread(descriptor, _CHUNK, at)
        for begin, end in leftovers(chunk, shape):
            if at + begin >= shape.page:  # the first page has the schema, which names nobody
                os.pwrite(descriptor, bytes(end - begin), at + begin)
                found += 1
    if found:
        os.fdatasync(descriptor)
    return found


@cache
def _opened(path: Path, _inode: int) -> int:
    """A descriptor that is never closed: closing any of a file gives up all locks that this process has on it, SQLite's among them."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)


def _shape_of(header: bytes, size: int) -> _Shape | None:
    """None where a page that is no tree's may look like one: with a map of pages, or with page numbers as large as that."""
    page, reserved, roots = _HEADER.unpack(header)
    page = 1 << 16 if page == 1 else page
    return None if roots or size >= MOST_PAGES * page else _Shape(page, page - reserved)


def leftovers(pages: bytes, shape: _Shape) -> Iterator[tuple[int, int]]:
    """Begin and end of the unused spaces that are not all zeros."""
    whole = len(pages) - len(pages) % shape.page
    fields = Struct(f">B2xHH{shape.page - 7}x").iter_unpack(memoryview(pages)[:whole])
    for number, (kind, cells, content) in enumerate(fields):
        head = _CELLS_FROM.get(kind)
        if head is None:
            continue
        at = number * shape.page
        begin, end = at + head + 2 * cells, at + (content or 1 << 16)
        if begin < end <= at + shape.usable and pages[begin:end] != bytes(end - begin):
            yield begin, end
