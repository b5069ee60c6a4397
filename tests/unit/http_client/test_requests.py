"""What goes out: a request is one piece of bytes, and nothing that is put into it becomes a second one."""

import pytest

from destinations.http.failure import UNSENDABLE, ExchangeFailed
from destinations.http.request import Origin, Request


def test_a_request_is_one_piece_of_bytes_with_what_changes_behind_what_does_not() -> None:
    request = Request("POST", "https://Service.example/a b/ü?q=1&x=ö#part".replace(" ", "%20"), {"X-Key": "k"})
    assert request.origin == Origin("https", "service.example", 443)
    assert request.written(b"[]", {"Idempotency-Key": "1"}) == (
        b"POST /a%20b/%C3%BC?q=1&x=%C3%B6 HTTP/1.1\r\n"
        b"Host: service.example\r\nAccept: */*\r\nAccept-Encoding: identity\r\nX-Key: k\r\n"
        b"Idempotency-Key: 1\r\nContent-Length: 2\r\n\r\n[]"
    )


@pytest.mark.parametrize(
    ("url", "origin", "host", "target"),
    [
        ("http://a.example", ("http", "a.example", 80), "a.example", "/"),
        ("http://a.example:8080?x", ("http", "a.example", 8080), "a.example:8080", "/?x"),
        ("https://[::1]:8443/x", ("https", "::1", 8443), "[::1]:8443", "/x"),
        ("https://bücher.example/", ("https", "xn--bcher-kva.example", 443), "xn--bcher-kva.example", "/"),
    ],
)
def test_an_address_is_taken_apart(url: str, origin: tuple[str, str, int], host: str, target: str) -> None:
    request = Request("GET", url, {})
    first, named = request.written(b"", {}).decode().split("\r\n")[:2]
    assert (request.origin, first, named) == (origin, f"GET {target} HTTP/1.1", f"Host: {host}")


def test_what_is_given_replaces_what_would_be_sent_otherwise() -> None:
    lines = Request("GET", "http://a:b%20c@a.example/", {"host": "b.example", "ACCEPT": "text/plain"}).written(b"", {})
    assert lines.decode().split("\r\n")[1:-2] == [
        "Accept-Encoding: identity",
        "Authorization: Basic YTpiIGM=",
        "host: b.example",
        "ACCEPT: text/plain",
    ]


def test_a_request_says_how_long_its_body_is_where_one_is_expected() -> None:
    sizes = {
        (method, body): b"Content-Length: %d\r\n" % len(body)
        in Request(method, "http://a.example/", {}).written(body, {})
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE")
        for body in (b"", b"{}")
    }
    assert [case for case, said in sizes.items() if not said] == [("GET", b""), ("HEAD", b"")]


INJECTIONS = {
    "a line break in a value": ("POST", "http://a.example/", {"X-Key": "geheim\r\nX: y"}),
    "half a line break in a value": ("POST", "http://a.example/", {"X-Key": "geheim\nX: y"}),
    "a zero in a value": ("POST", "http://a.example/", {"X-Key": "geheim\0"}),
    "a value that is not ASCII": ("POST", "http://a.example/", {"X-Key": "geheim ü"}),
    "a line break in a name": ("POST", "http://a.example/", {"X: y\r\nZ": "geheim"}),
    "a colon in a name": ("POST", "http://a.example/", {"X:": "geheim"}),
    "no name": ("POST", "http://a.example/", {"": "geheim"}),
    "a length of one's own": ("POST", "http://a.example/", {"content-length": "1"}),
    "chunks of one's own": ("POST", "http://a.example/", {"Transfer-Encoding": "chunked"}),
    "a line break in the address": ("POST", "http://a.example/\r\nX: geheim", {}),
    "a tab in the address": ("POST", "http://a.example/\tgeheim", {}),
    "a space in the address": ("POST", "http://a.example/ HTTP/1.1 geheim", {}),
    "a space in the method": ("POST / HTTP/1.1", "http://a.example/", {}),
    "another scheme": ("POST", "file:///geheim", {}),
    "no host": ("POST", "http:///geheim", {}),
    "a port that is none": ("POST", "http://a.example:geheim/", {}),
    "half an address of IPv6": ("POST", "http://[::1/geheim", {}),
    "a host that is no name": ("POST", f"http://{'ü' * 70}.example/geheim", {}),
}


@pytest.mark.parametrize(("method", "url", "headers"), INJECTIONS.values(), ids=INJECTIONS)
def test_what_would_be_another_request_is_not_sent_and_not_shown(
    method: str, url: str, headers: dict[str, str]
) -> None:
    with pytest.raises(ExchangeFailed, match=f"^{UNSENDABLE}: ") as caught:
        Request(method, url, headers)
    assert "geheim" not in str(caught.value)


def test_headers_that_change_are_checked_as_well() -> None:
    with pytest.raises(ExchangeFailed, match=UNSENDABLE):
        Request("POST", "http://a.example/", {}).written(b"", {"X-Key": "1\r\nX: y"})
