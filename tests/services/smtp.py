"""A mail server that keeps to RFC 5321's order of commands, with AUTH PLAIN and STARTTLS, and keeps what it is given."""

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass
class Mailbox:
    """What arrived, and how the server is set up."""

    port: int = 0
    messages: list[tuple[str, list[str], str]] = field(default_factory=list)  # sender, recipients, text
    users: list[str] = field(default_factory=list)
    secure: list[bool] = field(default_factory=list)


@asynccontextmanager
async def mail_server(tls: ssl.SSLContext, *, password: str = "right") -> AsyncIterator[Mailbox]:
    """Listens on 127.0.0.1. Mail is taken only over TLS and from who has logged in."""
    box = Mailbox()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _Session(box, reader, writer, tls, password).run()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()


@dataclass
class _Session:
    box: Mailbox
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    tls: ssl.SSLContext
    password: str
    secure: bool = False
    user: str = ""
    sender: str = ""
    to: list[str] = field(default_factory=list)

    async def say(self, line: str) -> None:
        self.writer.write(line.encode() + b"\r\n")
        await self.writer.drain()

    async def run(self) -> None:
        await self.say("220 here")
        while line := (await self.reader.readline()).decode().strip():
            verb, _, rest = line.partition(" ")
            if not await self.obey(verb.upper(), rest):
                return

    async def obey(self, verb: str, rest: str) -> bool:
        match verb:
            case "EHLO":
                offers = ["here", "AUTH PLAIN"] if self.secure else ["here", "STARTTLS"]
                for index, offer in enumerate(offers):
                    await self.say(f"250{' ' if index == len(offers) - 1 else '-'}{offer}")
            case "STARTTLS":
                await self.say("220 go ahead")
                await self.writer.start_tls(self.tls)
                self.secure = True
            case "AUTH":
                _, name, given = base64.b64decode(rest.split()[-1]).decode().split("\0")
                self.user = name if given == self.password else ""
                await self.say("235 welcome" if self.user else "535 no")
            case "MAIL":
                self.sender = rest.partition("<")[2].partition(">")[0]
                await self.say("250 ok" if self.secure and self.user else "530 authentication required")
            case "RCPT":
                self.to.append(rest.partition("<")[2].partition(">")[0])
                await self.say("250 ok" if self.sender else "503 MAIL first")
            case "DATA":
                await self.say("354 go ahead")
                text = (await self.reader.readuntil(b"\r\n.\r\n")).decode()
                self.box.messages.append((self.sender, self.to, text))
                self.box.users.append(self.user)
                self.box.secure.append(self.secure)
                await self.say("250 kept")
            case "QUIT":
                await self.say("221 bye")
                return False
            case _:
                await self.say("250 ok")
        return True
