"""What SQLite leaves behind in the unused space of its pages, written over.

`secure_delete` zeroes a row where it lies. But a row that was moved before, as pages are split and joined, can still be read in the page it
came from, between that page's cell pointers and its cells (https://www.sqlite.org/fileformat.html#b_tree_pages). No statement
reaches these bytes, and writing the whole file anew for every deletion would stop the pipeline for minutes; hence they are zeroed in the file itself.
"""

import os
from collections.abc import Iterator
from errno import EIO
from pathlib import Path
from struct import Struct
from threading import Lock
from typing import Final

_HEADER: Final = Struct(">16xH2xB31xI44x")
"""Of the file: the size of its pages, the bytes of each that SQLite leaves alone, the largest root page (with a map of pages)."""
_CELLS_FROM: Final = {2: 12, 5: 12, 10: 8, 13: 8}
"""Where the cell pointers begin, by the type of a page: inner and leaf pages of indexes and tables."""
_CHUNK: Final = 1 << 20  # bytes read at once; pages are powers of two, so that a chunk has whole ones
MOST_PAGES: Final = 1 << 25
"""From here on the page numbers that other pages begin with can be mistaken for a type: 137 GB."""


def overwrite(path: Path) -> int | None:
    """How many pages of a database had something in their unused space, which is zeroed and durable now. None for a file whose pages cannot be
    told apart, or have bytes that belong to somebody else: it has to be written anew.

    The caller holds the write lock and the write-ahead log is empty, so that the file is all there is; readers may go on, to whom these
    bytes mean nothing. Connections may have such pages in memory, and would write them again as they were: the caller commits
    something before it lets go of the lock, upon which every connection but its own forgets what it has. Costs a look at every page: some 0.3 s
    per gigabyte, or as long as the disk takes for what is not in memory. OSError."""
    descriptor = _opened(path)
    size = os.fstat(descriptor).st_size
    if not size:
        return 0
    page = _page_size(os.pread(descriptor, _HEADER.size, 0), size)
    if page is None:
        return None
    found = 0
    for at in range(0, size, _CHUNK):
        chunk = os.pread(descriptor, _CHUNK, at)
        if len(chunk) < min(_CHUNK, size - at):
            raise OSError(EIO, "the file became shorter")
        for begin, end in leftovers(chunk, page):
            if at + begin >= page:  # the first page has the schema, which names nobody
                _zero(descriptor, at + begin, at + end)
                found += 1
    os.fdatasync(descriptor)  # also what an attempt before this one had zeroed
    return found


def _zero(descriptor: int, begin: int, end: int) -> None:
    while begin < end:
        begin += os.pwrite(descriptor, bytes(end - begin), begin)


_descriptors: Final[dict[tuple[Path, int, int], int]] = {}
_opening: Final = Lock()


def _opened(path: Path) -> int:
    """A descriptor that is closed once the file is removed, not before: closing any of a file gives up all locks that this process has on it,
    SQLite's among them."""
    with _opening:
        for key, descriptor in list(_descriptors.items()):
            if not os.fstat(descriptor).st_nlink:
                os.close(_descriptors.pop(key))
        found = os.stat(path)
        key = (path, found.st_dev, found.st_ino)
        if key not in _descriptors:
            _descriptors[key] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        return _descriptors[key]


def _page_size(header: bytes, size: int) -> int | None:
    """None where a page that is no tree's may look like one, with a map of pages or with page numbers as large as that; and where pages end with
    bytes of an extension, such as a checksum."""
    page, reserved, roots = _HEADER.unpack(header)
    page = 1 << 16 if page == 1 else page
    return None if roots or reserved or size >= MOST_PAGES * page else page


def leftovers(pages: bytes, page: int) -> Iterator[tuple[int, int]]:
    """Begin and end of the unused spaces that are not all zeros."""
    whole = len(pages) - len(pages) % page
    fields = Struct(f">B2xHH{page - 7}x").iter_unpack(memoryview(pages)[:whole])
    for number, (kind, cells, content) in enumerate(fields):
        head = _CELLS_FROM.get(kind)
        if head is None:
            continue
        at = number * page
        begin, end = at + head + 2 * cells, at + (content or 1 << 16)
        if begin < end <= at + page and pages[begin:end] != bytes(end - begin):
            yield begin, end
