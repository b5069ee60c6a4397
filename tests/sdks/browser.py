"""A real browser, driven from here line by line."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.sdks.drive import DRIVERS
from tests.sdks.running import PATIENCE


class Browser:
    """Headless Chromium with a profile of its own and no way to any host but 127.0.0.1."""

    def __init__(self, executable: str, modules: Path) -> None:
        self.origin = ""
        self._profile = Path(tempfile.mkdtemp(prefix="millrace-browser-"))
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the browser
        variables = {"SDK_MODULES": str(modules), "BROWSER": executable, "BROWSER_DATA": str(self._profile)}
        self._process = subprocess.Popen(
            ["node", str(DRIVERS / "browser.cjs")],
            env=os.environ | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def open(self, html: str, path: str = "/", files: Path | None = None, referer: str | None = None) -> None:
        """A page on an origin of its own, which also has the scripts of `files`."""
        self.origin = self._ask(open=html, path=path, files=files and str(files), referer=referer)["origin"]

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        return self._ask(run=expression)

    def offline(self, offline: bool) -> None:
        self._ask(offline=offline)

    def leave(self) -> None:
        """To another page, as people do, without waiting for anything."""
        self._ask(leave=True)

    def hosts(self) -> set[str]:
        """Every origin that the pages asked anything of."""
        return {request["url"].split("/")[2] for request in self.requests() if request["url"].startswith("http")}

    def requests(self) -> list[dict[str, str]]:
        seen: list[dict[str, str]] = self._ask(requests=True)["requests"]
        return seen

    def problems(self) -> list[str]:
        """Errors that no script caught."""
        seen: list[str] = self._ask(requests=True)["problems"]
        return seen

    def close(self) -> None:
        try:
            self._process.communicate(timeout=PATIENCE)  # the end of its input ends it
        finally:
            self._process.kill()
            self._errors.close()
            shutil.rmtree(self._profile, ignore_errors=True)

    def _ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise AssertionError(f"the browser is gone: {self._errors.read()[-2000:]}")
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]
