"""Something between an SDK and Millrace: passes bytes on, in TLS where asked, and breaks off requests where asked."""

import asyncio
import json
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Coroutine
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

_CERTIFICATE: Final = """
import datetime, ipaddress, json
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
name, day = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")]), datetime.timedelta(days=1)
made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
signed = made.add_extension(names, critical=False).sign(key, hashes.SHA256())
pem, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
parts = signed.public_bytes(pem), key.private_bytes(pem, kind, serialization.NoEncryption())
print(json.dumps(b"".join(parts).decode()))
"""


class Relay:
    """Listens on a port of its own. With `tls` it speaks https there and says so, as proxies do; `broken` is how many POST requests find the
    connection cut before Millrace hears of them."""

    def __init__(self, address: str, *, tls: ssl.SSLContext | None = None, broken: int = 0) -> None:
        self._target, self._tls = urlsplit(address), tls
        self.still_broken = broken
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server = self._do(asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls))

    @property
    def address(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Ends both directions when either ends."""
        answers, requests = await asyncio.open_connection(self._target.hostname, self._target.port)
        both = [
            asyncio.ensure_future(self._pass_on(reader, requests, watched=True)),
            asyncio.ensure_future(self._pass_on(answers, writer, watched=False)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in both:
                one.cancel()
            requests.close()
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, watched: bool) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65_536):
                if watched and self.still_broken and data.startswith(b"POST "):
                    self.still_broken -= 1
                    return
                if watched and self._tls and data.startswith((b"GET ", b"POST ", b"OPTIONS ")):
                    data = data.replace(b"\r\n", b"\r\nX-Forwarded-Proto: https\r\n", 1)
                writer.write(data)
                await writer.drain()


@cache
def tls_context(python_path: Path) -> ssl.SSLContext:
    """A server's context with a certificate made now, by a package that the Python SDKs bring along."""
    command = [sys.executable, "-S", "-c", _CERTIFICATE]
    done = subprocess.run(command, env={"PYTHONPATH": str(python_path)}, capture_output=True, text=True, check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
        file.write(json.loads(done.stdout))
        file.flush()
        context.load_cert_chain(file.name)
    return context
