"""Where a destination may connect to, tried with real sockets."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from destinations.contract import DELIVERED, Rejected, Retry
from destinations.guard import Outbound, permitted, trusting
from destinations.http.client import session
from destinations.http.failure import ADDRESS_REFUSED
from destinations.outbound import post
from schemas.errors import ConfigError

HOME = Outbound(allow=(ip_network("127.0.0.0/8"),))
REFUSED = {
    "loopback": "127.0.0.1",
    "all of loopback": "127.255.255.254",
    "this host": "0.0.0.0",
    "private, class A": "10.0.0.1",
    "private, class B": "172.16.0.1",
    "private, class C": "192.168.1.1",
    "carrier-grade NAT": "100.64.0.1",
    "link-local, where clouds keep their metadata": "169.254.169.254",
    "benchmarking": "198.18.0.1",
    "documentation": "192.0.2.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "IPv6 loopback": "::1",
    "IPv6 unspecified": "::",
    "IPv6 link-local with a zone": "fe80::1%eth0",
    "IPv6 unique local": "fd00::1",
    "IPv6 multicast": "ff02::1",
    "IPv4-mapped loopback": "::ffff:127.0.0.1",
    "IPv4-mapped private": "::ffff:10.0.0.1",
    "NAT64 of a private address": "64:ff9b::a00:1",
    "6to4 of a private address": "2002:0a00:0001::1",
}


@pytest.mark.parametrize("address", REFUSED.values(), ids=REFUSED)
def test_what_is_not_public_is_refused(address: str) -> None:
    assert not permitted(address, ())


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_the_public_internet_is_permitted(address: str) -> None:
    assert permitted(address, ())


def test_a_named_network_is_permitted_in_every_form_of_its_addresses_and_no_other_is() -> None:
    allow = (ip_network("10.1.0.0/16"), ip_network("fd00::/8"))
    inside = ["10.1.2.3", "::ffff:10.1.2.3", "fd00::7"]
    assert [permitted(one, allow) for one in inside] == [True] * 3
    assert not permitted("10.2.0.1", allow)


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on 127.0.0.1 that answers 200, and on /away redirects to 127.0.0.2."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/away":
            raise web.HTTPFound(f"http://127.0.0.2:{request.url.port}/")
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{any:.*}", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f.1", "[::ffff:127.0.0.1]"])
async def test_no_name_or_number_leads_to_this_machine_unless_it_is_allowed(host: str) -> None:
    async with serving() as port, session(Outbound()) as http:
        said = await post(http, f"http://{host}:{port}/", b"", {}, timeout=5, now=0)
    assert said == Retry(ADDRESS_REFUSED)


async def test_a_number_for_a_host_goes_nowhere() -> None:
    async with serving() as port, session(Outbound()) as http:
        said = await post(http, f"http://2130706433:{port}/", b"", {}, timeout=5, now=0)
    assert isinstance(said, Retry)


async def test_what_is_allowed_is_reached() -> None:
    async with serving() as port, session(HOME) as http:
        assert await post(http, f"http://127.0.0.1:{port}/", b"", {}, timeout=5, now=0) == DELIVERED


async def test_a_redirect_is_not_followed_even_to_where_we_may_connect() -> None:
    async with serving() as port, session(HOME) as http:
        said = await post(http, f"http://127.0.0.1:{port}/away", b"", {}, timeout=5, now=0)
    assert said == Rejected("http 302")


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(made.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


async def test_an_unknown_authority_is_refused_and_a_named_one_trusted(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    trusted = Outbound(allow=HOME.allow, trust=trusting(str(cert)))
    async with serving(tls=tls) as port, session(HOME) as plain, session(trusted) as own:
        url = f"https://127.0.0.1:{port}/"
        said = [await post(http, url, b"", {}, timeout=5, now=0) for http in (plain, own)]
    assert said == [Retry("tls handshake failed"), DELIVERED]


def test_a_file_that_holds_no_certificates_is_a_fault_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "nothing.pem").write_text("nothing")
    with pytest.raises(ConfigError, match="certificates in PEM form"):
        trusting(str(tmp_path / "nothing.pem"))
