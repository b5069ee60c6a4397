"""Secrets kept encrypted in the data folder, for `${secret:name}` in millrace.yaml.

Each value is sealed on its own (Fernet: AES-128-CBC with HMAC-SHA256) with the key in MILLRACE_SECRETS_KEY, else with one
made up the first time and kept beside, readable by the owner alone: the store may then be backed up without its key.
"""

import json
import re
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

from millrace import data_folder
from schemas.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

STORE: Final = "secrets.json"
KEY: Final = "secrets-key"
SHORTEST_KEY: Final = 32  # characters, random ones
_NAME: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class SecretStore:
    """The secrets of one data folder. `key` is MILLRACE_SECRETS_KEY, None when it is not set."""

    def __init__(self, folder: Path, key: str | None) -> None:
        self._folder, self._path, self._key = folder, folder / STORE, key

    def names(self) -> Sequence[str]:
        """What there is, in order."""
        return sorted(self._sealed())

    def get(self, name: str) -> str | None:
        """The secret, None when there is none of that name. ConfigError when the key does not open it."""
        from cryptography.fernet import InvalidToken

        sealed = self._sealed().get(name)
        if sealed is None:
            return None
        try:
            return self._fernet().decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise ConfigError(
                f"secret {name} in {self._path} was sealed with another key; bring back MILLRACE_SECRETS_KEY or the file "
                f"{KEY} of that time, or set the secret again"
            ) from None

    def set(self, name: str, value: str) -> None:
        """Adds or replaces a secret."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"secret {name!r} is not a name; start with a lower-case letter, then letters, digits, _ or -, 63 in all at most"
            )
        data_folder.prepare(self._folder)
        sealed = self._fernet(make=True).encrypt(value.encode()).decode()
        with data_folder.one_at_a_time(self._folder, "secrets"):
            self._write(self._sealed() | {name: sealed})

    def remove(self, name: str) -> bool:
        """Whether there was one."""
        if name not in self._sealed():
            return False
        with data_folder.one_at_a_time(self._folder, "secrets"):
            self._write({other: sealed for other, sealed in self._sealed().items() if other != name})
        return True

    def _sealed(self) -> dict[str, str]:
        try:
            held = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._path}: cannot be read: {error}; restore it from a backup") from error
        return {str(name): str(sealed) for name, sealed in held.items()}

    def _write(self, sealed: dict[str, str]) -> None:
        data_folder.replace(self._path, json.dumps(sealed, indent=1, sort_keys=True) + "\n", mode=0o600)

    def _fernet(self, *, make: bool = False) -> "Fernet":
        from cryptography.fernet import Fernet

        key = self._key or data_folder.recall(self._folder, KEY)
        if key is None and not make:
            raise ConfigError(f"{self._folder / KEY} is gone; restore it, or set MILLRACE_SECRETS_KEY to what it held")
        key = key or data_folder.remembered(self._folder, KEY, "")
        if len(key) < SHORTEST_KEY:
            raise ConfigError(
                f"the key of the secrets is shorter than {SHORTEST_KEY} characters; make one with `millrace secrets key`"
            )
        return Fernet(urlsafe_b64encode(blake2b(key.encode(), digest_size=32, person=b"secrets").digest()))
