"""The real SDKs of the market, unmodified, against a running Millrace."""

import pytest

for name in (
    "browser",
    "calls",
    "drive",
    "running",
):  # before they are imported: failing asserts then say what was there
    pytest.register_assert_rewrite(f"tests.sdks.{name}")
