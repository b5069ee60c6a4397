"""The browser SDK, unmodified, in a real Chromium on another origin than Millrace."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sdks import drive
from tests.sdks.browser import Browser
from tests.sdks.calls import LONG_AGO, check_events, now
from tests.sdks.relay import Relay, tls_context
from tests.sdks.running import Event, Running, Source

pytestmark = pytest.mark.sdks

NEW, OLD = "@segment/analytics-next", "analytics-next-1.83"
PATH = "/shop?utm_source=letter&utm_campaign=spring"
HTML = "<!doctype html><title>A shop</title><script src=/index.js></script>"
BATCHING = {"strategy": "batching", "config": {"size": 100, "timeout": 300}}

Calls = Sequence[tuple[str, Sequence[Any]]]


def calls(person: str) -> Calls:
    return [
        ("page", ["Docs", "Guide", {"tab": "first"}]),
        ("alias", [f"{person}-user"]),
        (
            "identify",
            [f"{person}-user", {"email": f"{person}@example.org", "name": "Zoë 🐈", "address": {"city": "Köln"}}],
        ),
        (
            "track",
            [
                "Order Completed",
                {"revenue": 39.95, "gift": True, "coupon": None, "products": [{"sku": "A", "price": 19.5}]},
                {"context": {"ip": "0.0.0.0", "groupId": "company"}, "integrations": {"Salesforce": False}},
            ],
        ),
        ("track", ["Imported Long Ago", {"zero": 0}, {"timestamp": LONG_AGO}]),
        ("screen", ["App", "Home", {"tab": "news"}]),
        ("group", [f"{person}-company", {"plan": "pro", "seats": 12}]),
    ]


def events(person: str, anonymous_id: str, page: dict[str, Any], context: Mapping[str, Any]) -> list[Event]:
    """What the calls must become. `context` is what the browser says of itself."""
    user = {"type": "user_id", "id": f"{person}-user"}
    email = {"type": "email", "id": f"{person}@example.org"}
    device = {"type": "anonymous_id", "id": anonymous_id}
    here = {"anonymousId": anonymous_id, "integrations": {"Segment.io": True}, "context": context}
    company = {"type": "group_id", "id": f"{person}-company"}
    known = here | {"userId": user["id"], "externalIds": [user, device]}
    traits = {"email": email["id"], "name": "Zoë 🐈", "address": {"city": "Köln"}}
    return [
        here
        | {"type": "page", "category": "Docs", "name": "Guide", "externalIds": [device]}
        | {"properties": page | {"tab": "first", "category": "Docs", "name": "Guide"}},
        known | {"type": "alias", "previousId": anonymous_id},
        known | {"type": "identify", "traits": traits, "externalIds": [user, email, device]},
        known
        | {"type": "track", "event": "Order Completed", "integrations": {"Segment.io": True, "Salesforce": False}}
        | {"properties": {"revenue": 39.95, "gift": True, "coupon": None, "products": [{"sku": "A", "price": 19.5}]}}
        | {"context": {**context, "ip": "0.0.0.0", "groupId": "company"}}
        | {"externalIds": [user, device, {"type": "group_id", "id": "company"}]},
        known | {"type": "track", "event": "Imported Long Ago", "properties": {"zero": 0}},
        known | {"type": "screen", "category": "App", "name": "Home", "properties": {"tab": "news"}},
        known
        | {"type": "group", "groupId": company["id"], "traits": {"plan": "pro", "seats": 12}}
        | {"externalIds": [user, device, company]},
    ]


# ── Loading ───────────────────────────────────────────────────────────────────────────────────────────────────────


def load(browser: Browser, modules: Path, sdk: str, source: Source, options: Mapping[str, Any], cdn: str = "") -> None:
    """A page that has the package's own build, as a bundler would, and gets its settings from us."""
    browser.open(HTML, PATH, modules / sdk / "dist" / "umd", referer="http://127.0.0.1:9/search")
    settings = {"writeKey": source.write_key, "cdnURL": cdn or source.running.address}
    browser.run(
        "(async () => {"
        f"window.analytics = AnalyticsNext.AnalyticsBrowser.load({json.dumps(settings)}, {json.dumps(options)});"
        "await window.analytics;"
        "})()"
    )


def strategy(delivery: Mapping[str, Any]) -> dict[str, Any]:
    return {"integrations": {"Segment.io": {"deliveryStrategy": delivery}}}


def make(browser: Browser, made: Calls) -> None:
    """Each call once the one before it is done, as far as the SDK tells."""
    browser.run(f"(async () => {{ for (const [name, args] of {json.dumps(made)}) await analytics[name](...args) }})()")


def anonymous_id(browser: Browser) -> str:
    said: str = browser.run("analytics.instance.user().anonymousId()")
    return said


def page_of(browser: Browser) -> dict[str, Any]:
    path, _, search = PATH.partition("?")
    return {
        "path": path,
        "referrer": "http://127.0.0.1:9/search",
        "search": f"?{search}",
        "title": "A shop",
        "url": f"{browser.origin}{PATH}",
    }


def context_of(browser: Browser, version: str) -> dict[str, Any]:
    """What the SDK adds to every event, and what we add: the address, and what the user agent tells."""
    said: dict[str, Any] = browser.run(
        "({userAgent: navigator.userAgent, locale: navigator.language,"
        " timezone: Intl.DateTimeFormat().resolvedOptions().timeZone,"
        " userAgentData: navigator.userAgentData && navigator.userAgentData.toJSON()})"
    )
    if said["userAgentData"] is None:
        del said["userAgentData"]
    major = re.search(r"HeadlessChrome/(\d+)", said["userAgent"])
    assert major is not None, said["userAgent"]
    return said | {
        "browser": {"name": "HeadlessChrome", "version": f"{major[1]}.0.0"},
        "os": {"name": "Linux"},
        "bot": True,
        "campaign": {"source": "letter", "name": "spring"},
        "ip": "127.0.0.1",
        "library": {"name": "analytics.js", "version": version},
        "page": page_of(browser),
    }


# ── Calls ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("sdk", [NEW, OLD])
@pytest.mark.parametrize(
    "delivery",
    [{}, {"config": {"credentials": "include", "keepalive": True, "headers": {"X-Shop": "7"}}}],
    ids=["plain", "with credentials and a header"],
)
def test_calls_arrive_one_by_one(
    browser: Browser, node_modules: Path, source: Source, sdk: str, delivery: Mapping[str, Any]
) -> None:
    load(browser, node_modules, sdk, source, strategy(delivery))
    called = now()

    make(browser, calls(source.name))

    check(browser, node_modules, sdk, source, called)
    assert [one["url"] for one in browser.requests() if one["method"] == "POST"] == [
        f"{source.running.address}/v1/{letter}" for letter in "paittsg"
    ]
    assert browser.hosts() == {browser.origin.removeprefix("http://"), source.running.host}


def test_calls_arrive_in_a_batch(browser: Browser, node_modules: Path, source: Source) -> None:
    load(browser, node_modules, NEW, source, strategy(BATCHING))
    called = now()

    make(browser, calls(source.name))

    check(browser, node_modules, NEW, source, called)
    posts = [one["url"] for one in browser.requests() if one["method"] == "POST"]
    assert posts == [f"{source.running.address}/v1/b"]


@pytest.mark.parametrize("sdk", [NEW, OLD])
def test_calls_arrive_in_a_batch_over_tls(
    browser: Browser, node_modules: Path, source: Source, tls: Relay, sdk: str
) -> None:
    """Up to 1.83 batches go to https whatever the settings say."""
    load(browser, node_modules, sdk, source, strategy(BATCHING), tls.address)
    called = now()

    make(browser, calls(source.name))

    check(browser, node_modules, sdk, source, called)


def check(browser: Browser, modules: Path, sdk: str, source: Source, called: Any) -> None:
    context = context_of(browser, f"next-{drive.version(modules, sdk)}")
    expected = events(source.name, anonymous_id(browser), page_of(browser), context)
    seen = source.calls_seen(len(expected))
    check_events(seen, expected, source, called)
    check_warehouse(source, expected)
    assert source.traits(f"{source.name}-user") == expected[2]["traits"]
    assert browser.problems() == []


def check_warehouse(source: Source, expected: Sequence[Event]) -> None:
    """Each call has its row, and an order all that is known of it."""
    assert source.tables() == {
        *("pages", "aliases", "identifies", "users", "tracks", "screens", "groups", "accounts"),
        *("order_completed", "imported_long_ago"),
    }
    (page, _, _, order, *_) = expected
    context = page["context"]
    (row,) = source.rows("order_completed")
    told = {name: value for name, value in row.items() if not name.startswith("context_user_agent_data")}
    for name in ("id", "profile_id", "received_at", "sent_at", "timestamp", "original_timestamp", "uuid_ts"):
        told.pop(name)
    assert told == {
        "anonymous_id": order["anonymousId"],
        "user_id": order["userId"],
        "event": "order_completed",
        "event_text": "Order Completed",
        "revenue": 39.95,
        "gift": True,
        "products": '[{"sku":"A","price":19.5}]',
        "context_ip": "0.0.0.0",
        "context_group_id": "company",
        "context_locale": context["locale"],
        "context_timezone": context["timezone"],
        "context_user_agent": context["userAgent"],
        "context_browser_name": "HeadlessChrome",
        "context_browser_version": context["browser"]["version"],
        "context_os_name": "Linux",
        "context_bot": True,
        "context_library_name": "analytics.js",
        "context_library_version": context["library"]["version"],
        "context_campaign_name": "spring",
        "context_campaign_source": "letter",
        **{f"context_page_{name}": value for name, value in context["page"].items()},
    }


# ── Troubles ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("delivery", [{}, BATCHING], ids=["one by one", "batch"])
def test_a_request_that_broke_is_repeated_and_counted_once(
    browser: Browser, node_modules: Path, source: Source, breaking: Relay, delivery: Mapping[str, Any]
) -> None:
    """The repetition carries X-Retry-Count, which the preflight has to allow."""
    load(browser, node_modules, NEW, source, strategy(delivery), breaking.address)

    make(browser, [("track", ["Survived", {"n": 1}])])

    (event,) = source.calls_seen(1)
    assert (event["event"], event["properties"]) == ("Survived", {"n": 1})
    assert breaking.still_broken == 0


def test_what_waits_when_the_page_is_left_is_sent_on_leaving(
    browser: Browser, node_modules: Path, source: Source
) -> None:
    """The preflight of an earlier batch is still known: leaving is too short for another."""
    load(
        browser, node_modules, NEW, source, strategy({"strategy": "batching", "config": {"size": 2, "timeout": 60_000}})
    )
    make(browser, [("track", ["Came", {}]), ("track", ["Looked", {}])])
    source.calls_seen(2)

    make(browser, [("track", ["Left", {"seconds": 4}])])
    browser.leave()

    assert {event["event"] for event in source.calls_seen(3)} == {"Came", "Looked", "Left"}


def test_a_call_made_offline_arrives_when_the_network_is_back(
    browser: Browser, node_modules: Path, source: Source
) -> None:
    load(browser, node_modules, NEW, source, {})
    browser.offline(True)
    browser.run("void analytics.track('Made In A Tunnel')")

    browser.offline(False)

    assert [event["event"] for event in source.calls_seen(1)] == ["Made In A Tunnel"]


def test_a_call_under_way_when_the_page_is_left_is_there_once(
    browser: Browser, node_modules: Path, source: Source
) -> None:
    """The SDK sends it again from the next page, under the same message id."""
    load(browser, node_modules, NEW, source, {})
    browser.run("void analytics.track('Clicked A Link', {to: '/next'})")
    browser.leave()

    load(browser, node_modules, NEW, source, {})

    (event,) = source.calls_seen(1)
    assert (event["event"], event["properties"]) == ("Clicked A Link", {"to": "/next"})


def test_an_unknown_write_key_loads_nothing_and_sends_nothing(
    browser: Browser, node_modules: Path, running: Running
) -> None:
    with pytest.raises(AssertionError, match="unknown_source"):
        load(browser, node_modules, NEW, Source(running, "nobody", "wk_nobody"), {})
    assert [one for one in browser.requests() if one["method"] == "POST"] == []


# ── The snippet ───────────────────────────────────────────────────────────────────────────────────────────────────

SNIPPET = """<!doctype html><title>A shop</title><script>
!function(){var i="analytics",analytics=window[i]=window[i]||[];if(!analytics.initialize)if(analytics.invoked)
window.console&&console.error&&console.error("Snippet included twice.");else{analytics.invoked=!0;
analytics.methods=["trackSubmit","trackClick","trackLink","trackForm","pageview","identify","reset","group","track",
"ready","alias","debug","page","screen","once","off","on","addSourceMiddleware","addIntegrationMiddleware",
"setAnonymousId","addDestinationMiddleware","register"];
analytics.factory=function(e){return function(){if(window[i].initialized)return window[i][e].apply(window[i],arguments);
var n=Array.prototype.slice.call(arguments);
if(["track","screen","alias","group","page","identify"].indexOf(e)>-1){
var c=document.querySelector("link[rel='canonical']");
n.push({__t:"bpc",c:c&&c.getAttribute("href")||void 0,p:location.pathname,u:location.href,s:location.search,
t:document.title,r:document.referrer})}
n.unshift(e);analytics.push(n);return analytics}};
for(var n=0;n<analytics.methods.length;n++){var key=analytics.methods[n];analytics[key]=analytics.factory(key)}
analytics.load=function(key,n){var t=document.createElement("script");t.type="text/javascript";t.async=!0;
t.setAttribute("data-global-segment-analytics-key",i);
t.src="%(address)s/analytics.js/v1/"+key+"/analytics.min.js";
var r=document.getElementsByTagName("script")[0];r.parentNode.insertBefore(t,r);analytics._loadOptions=n};
analytics._writeKey="%(key)s";analytics.SNIPPET_VERSION="5.2.0";
analytics.load("%(key)s");
analytics.page();
}}();
</script>"""


@pytest.mark.parametrize("package", [NEW, OLD])
def test_the_snippet_loads_everything_from_us(
    browser: Browser, node_modules: Path, serving: Running, package: str
) -> None:
    source = serving.source()
    html = SNIPPET % {"address": serving.address, "key": source.write_key}

    browser.open(html, f"{PATH}&ajs_uid={source.name}-user", referer="http://127.0.0.1:9/search")
    browser.run("new Promise(done => analytics.ready(done))")
    browser.run("analytics.track('Order Completed', {revenue: 39.95}).then(() => null)")

    seen = source.calls_seen(3)  # the query string names a user; what reads it is loaded on demand
    told = {event["type"]: (event.get("userId"), event.get("properties", {}).get("revenue")) for event in seen}
    user = f"{source.name}-user"
    assert told == {"page": (user, None), "identify": (user, None), "track": (user, 39.95)}
    assert {event["context"]["library"]["version"] for event in seen} == {
        f"next-{drive.version(node_modules, package)}"
    }
    assert browser.hosts() == {browser.origin.removeprefix("http://"), serving.host}
    assert [one["url"] for one in browser.requests() if "/analytics-next/bundles/queryString" in one["url"]]
    assert browser.problems() == []


@pytest.mark.parametrize("package", [NEW])
def test_the_bundle_works_without_a_snippet(browser: Browser, serving: Running) -> None:
    source = serving.source()
    script = f"{serving.address}/analytics.js/v1/{source.write_key}/analytics.min.js"

    browser.open(f"<!doctype html><title>A shop</title><script src={script}></script>")
    browser.run(
        "new Promise(done => { const wait = () => window.analytics.initialized ? done() : setTimeout(wait, 20); wait() })"
    )
    browser.run("analytics.track('Order Completed', {}).then(() => null)")

    assert [event["event"] for event in source.calls_seen(1)] == ["Order Completed"]
    assert browser.hosts() == {browser.origin.removeprefix("http://"), serving.host}


@pytest.fixture
def tls(running: Running, python_packages: Callable[[str], Path]) -> Iterator[Relay]:
    """Millrace behind https."""
    relay = Relay(running.address, tls=tls_context(python_packages("python")))
    yield relay
    relay.close()


@pytest.fixture
def breaking(running: Running) -> Iterator[Relay]:
    """Millrace behind a network that breaks one request."""
    relay = Relay(running.address, broken=1)
    yield relay
    relay.close()
