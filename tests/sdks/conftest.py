"""A Millrace for the whole session; each test takes a source of its own. What is missing skips on a laptop, fails in CI."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.sdks import installed
from tests.sdks.browser import Browser
from tests.sdks.running import Running, Source
from tests.services.process import ServiceAbsent


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("millrace"))
    yield running
    running.stop()


@pytest.fixture
def serving(tmp_path: Path, node_modules: Path, package: str) -> Iterator[Running]:
    """A Millrace that serves the browser SDK of an npm package."""
    running = Running(tmp_path, browser_sdk=node_modules / package / "dist" / "umd")
    yield running
    running.stop()


@pytest.fixture
def source(running: Running) -> Source:
    return running.source()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    try:
        return installed.node_modules()
    except ServiceAbsent as reason:
        absent(reason)


@pytest.fixture(scope="session")
def chromium() -> str:
    try:
        return installed.chromium()
    except ServiceAbsent as reason:
        absent(reason)


@pytest.fixture(scope="session")
def python_packages() -> Callable[[str], Path]:
    """The folder of a set of PyPI packages: `python` or `python-older`."""

    def find(name: str) -> Path:
        try:
            return installed.python_path(name)
        except ServiceAbsent as reason:
            absent(reason)

    return find


@pytest.fixture
def browser(chromium: str, node_modules: Path) -> Iterator[Browser]:
    """Each test's own: cookies, storage and cached preflights are fresh."""
    browser = Browser(chromium, node_modules)
    yield browser
    browser.close()
