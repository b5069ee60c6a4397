"""The ways to reach an operator: a webhook, Slack, e-mail. Each sends one notice and says by Unavailable that it did not get there."""

import asyncio
import hashlib
import hmac
import smtplib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import asdict
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import TYPE_CHECKING, Final

import orjson

from destinations.contract import Delivered
from destinations.guard import AddressRefused, Outbound, permitted
from destinations.outbound import post, user_agent
from schemas.config import EmailChannel, SlackChannel, WebhookChannel
from schemas.errors import CredentialsRejected, Unavailable
from schemas.events import iso
from schemas.notices import Notice

if TYPE_CHECKING:
    from destinations.http.client import Client

TIMEOUT: Final = 10.0  # seconds


async def tell_webhook(http: "Client", channel: WebhookChannel, notice: Notice) -> None:
    """Posts the notice as a JSON object, signed like deliveries of the webhook destination."""
    body = orjson.dumps(asdict(notice) | {"since": iso(notice.since), "at": iso(notice.at)})
    headers = {"Content-Type": "application/json", "User-Agent": user_agent()}
    if channel.secret is not None:
        seconds = notice.at // 1_000_000
        digest = hmac.new(channel.secret.get_secret_value().encode(), b"%d." % seconds + body, hashlib.sha256)
        headers["Millrace-Signature"] = f"t={seconds},v1={digest.hexdigest()}"
    await _post(http, channel.url.get_secret_value(), body, headers, notice)


async def tell_slack(http: "Client", channel: SlackChannel, notice: Notice) -> None:
    """Posts to an incoming webhook of Slack."""
    body = orjson.dumps({"text": f"{_subject(notice)}\n{notice.text}\n{notice.remedy}"})
    headers = {"Content-Type": "application/json", "User-Agent": user_agent()}
    await _post(http, channel.url.get_secret_value(), body, headers, notice)


async def tell_email(outbound: Outbound, channel: EmailChannel, notice: Notice) -> None:
    """Sends a plain-text message over SMTP, with STARTTLS unless the configuration says otherwise."""
    try:
        await asyncio.to_thread(_send_mail, outbound, channel, _message(channel, notice))
    except AddressRefused as error:
        raise Unavailable(str(error)) from error
    except (OSError, smtplib.SMTPException) as error:
        raise Unavailable(f"mail server: {_brief(error)}") from error


async def _post(http: "Client", url: str, body: bytes, headers: dict[str, str], notice: Notice) -> None:
    try:
        said = await post(http, url, body, headers, timeout=TIMEOUT, now=notice.at / 1e6)
    except CredentialsRejected as error:
        raise Unavailable(f"{error}: the channel does not know us; renew its address or secret") from error
    if not isinstance(said, Delivered):
        raise Unavailable(said.reason)


def _subject(notice: Notice) -> str:
    word = {"firing": "Alert", "resolved": "Resolved", "test": "Test"}[notice.state]
    return f"[Millrace] {word}: {notice.alert}"


def _message(channel: EmailChannel, notice: Notice) -> EmailMessage:
    from datetime import UTC, datetime

    message = EmailMessage()
    message["Subject"] = _subject(notice)
    message["From"], message["To"] = channel.sender, ", ".join(channel.to)
    message["Date"] = format_datetime(datetime.fromtimestamp(notice.at / 1e6, UTC))
    message["Message-ID"] = make_msgid(domain="millrace.invalid")
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(f"{notice.text}\n\n{notice.remedy}\n\nSince {iso(notice.since)}.\n")
    return message


def _send_mail(outbound: Outbound, channel: EmailChannel, message: EmailMessage) -> None:
    context = outbound.trust or ssl.create_default_context()
    with _Guarded(outbound, channel, context) as server:
        if channel.security == "starttls":
            server.starttls(context=context)
        if channel.user is not None and channel.password is not None:
            server.login(channel.user, channel.password.get_secret_value())
        server.send_message(message, to_addrs=list(channel.to))


class _Guarded(smtplib.SMTP):
    """Connects to permitted addresses only, and speaks TLS from the start when the channel says so."""

    def __init__(self, outbound: Outbound, channel: EmailChannel, context: ssl.SSLContext) -> None:
        self._outbound, self._channel, self._context = outbound, channel, context
        super().__init__(channel.host, channel.port, timeout=TIMEOUT)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        connected = _connect(self._outbound, host, port, timeout)
        if self._channel.security != "tls":
            return connected
        return self._context.wrap_socket(connected, server_hostname=host)


def _connect(outbound: Outbound, host: str, port: int, timeout: float) -> socket.socket:
    """The first permitted address that answers."""
    refused: OSError = AddressRefused(f"{host} has no public address; name its network under outbound.allow")
    found: Sequence[tuple[int, int, int, str, tuple[str | int, ...]]]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[assignment]  # its address is wider
    for family, kind, protocol, _, address in found:
        if not permitted(str(address[0]), outbound.allow):
            continue
        made = socket.socket(family, kind, protocol)
        made.settimeout(timeout)
        try:
            made.connect(address)
            return made
        except OSError as error:
            made.close()
            refused = error
    raise refused


def _brief(error: Exception) -> str:
    """What the server said, without addresses of people."""
    if isinstance(error, smtplib.SMTPResponseException):
        return f"answer {error.smtp_code}"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__
