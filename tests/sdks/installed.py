"""The SDKs as their authors publish them, installed once into `.sdks` from the locks in `tools/sdks`."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.services.process import ServiceAbsent

ROOT: Final = Path(__file__).parents[2]
LOCKS: Final = ROOT / "tools" / "sdks"
FOLDER: Final = ROOT / ".sdks"
_BROWSERS: Final = ("chromium", "chromium-browser", "google-chrome", "chrome")


def node_modules() -> Path:
    """The npm packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise ServiceAbsent(
            "no Node.js or npm for the SDK tests: install both (Debian, Ubuntu: apt install nodejs npm)"
        )
    names = ("package.json", "package-lock.json", ".npmrc")

    def install(folder: Path) -> None:
        for name in names:
            shutil.copy(LOCKS / name, folder)
        _run(["npm", "ci", "--prefer-offline", "--loglevel=error"], folder)

    return _once("node", [LOCKS / name for name in names], install) / "node_modules"


def python_path(name: str) -> Path:
    """A set of PyPI packages, `python` or `python-older`: a folder for PYTHONPATH."""
    lock = LOCKS / f"{name}.lock"

    def install(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--require-hashes", "--only-binary=:all:", "--target", str(folder), "-r", str(lock)], folder)

    return _once(f"{name}-{sys.version_info[0]}.{sys.version_info[1]}", [lock], install)


def chromium() -> str:
    """The browser's command: MILLRACE_TEST_CHROMIUM, else one of the usual names. Continuous integration may install it."""
    if found := _found_chromium():
        return found
    if os.environ.get("CI") and os.geteuid() == 0 and shutil.which("apt-get"):
        _run(["apt-get", "update", "-qq"], ROOT)
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"], ROOT)
    if found := _found_chromium():
        return found
    raise ServiceAbsent("no Chromium for the browser tests: install it (Debian: apt install chromium)")


def _found_chromium() -> str | None:
    named = os.environ.get("MILLRACE_TEST_CHROMIUM")
    return named or next((path for name in _BROWSERS if (path := shutil.which(name))), None)


def _once(name: str, sources: Sequence[Path], install: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `install` unless it was from the very same sources. An interrupted one starts over."""
    folder = FOLDER / name
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    with _alone():
        stamp = folder / ".complete"
        if not stamp.is_file() or stamp.read_text() != digest:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            install(folder)
            stamp.write_text(digest)
    return folder


@contextmanager
def _alone() -> Iterator[None]:
    """One installation at a time, between processes too."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / ".gitignore").write_text("*\n")
    with (FOLDER / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=280)
    if done.returncode:
        raise ServiceAbsent(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-600:]}")


def main() -> None:
    """Installs all there is to install, so that no test has to wait for it; says what this machine lacks."""
    for install in (node_modules, lambda: python_path("python"), lambda: python_path("python-older"), chromium):
        try:
            install()
        except ServiceAbsent as reason:
            sys.stderr.write(f"make: {reason}\n")


if __name__ == "__main__":
    main()
