"""Names the installed distributions that Millrace does not run on, one a line: the image is built from the whole lock, hashes
and all, and keeps the rest."""

import sys
from collections.abc import Iterable
from importlib.metadata import distribution, distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(name: str, extras: Iterable[str] = (), found: set[tuple[str, str]] | None = None) -> set[tuple[str, str]]:
    """`name` and whatever it needs with `extras`, as pairs of name and extra; "" is the distribution itself."""
    found = set() if found is None else found
    for extra in ("", *extras):
        if (name, extra) in found:
            continue
        found.add((name, extra))
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                needed(canonicalize_name(requirement.name), sorted(requirement.extras), found)
    return found


kept = {name for name, _ in needed("millrace")}
for name in sorted({canonicalize_name(one.name) for one in distributions()} - kept):
    sys.stdout.write(f"{name}\n")
