"""Who may import whom: the table of the design, held for every file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "schemas": (),
    "pipeline.log": ("schemas",),
    "collector": ("schemas", "pipeline.log"),
    "destinations": ("schemas",),
    "pipeline": (
        "schemas",
        "pipeline.log",
        "destinations.contract",
        "destinations.deadline",
        "destinations.exchanges",
        "destinations.guard",
        "destinations.http",
        "destinations.registry",
    ),
    "millrace": ("schemas", "pipeline", "collector", "destinations"),
}
OURS = {name.split(".")[0] for name in MAY_IMPORT} | {"benchmarks", "tests", "tools"}


def within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} write imports whole"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    inner = tuple(name for name in MAY_IMPORT if name.startswith(f"{package}."))
    wrong = []
    for file in sorted((ROOT / package.replace(".", "/")).rglob("*.py")):
        if within(".".join(file.relative_to(ROOT).with_suffix("").parts), inner):
            continue
        foreign = [name for name in imports(file) if name.split(".")[0] in OURS]
        wrong += [
            (str(file.relative_to(ROOT)), name) for name in foreign if not within(name, (package, *MAY_IMPORT[package]))
        ]
    assert wrong == []
