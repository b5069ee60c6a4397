"""A shop with visitors: the event stream of `millrace send`. The same seed gives the same people doing the same things.

A visitor has devices; a device has an anonymousId that outlives logins. They look around, put things into the cart, sign
up or log in, order, come back on another device, log out. Names of events and properties follow the e-commerce spec.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, NamedTuple
from uuid import UUID

Event = dict[str, Any]


class Product(NamedTuple):
    """What the shop sells; the price is in euros."""

    sku: str
    name: str
    category: str
    price: float


PRODUCTS: Final[Sequence[Product]] = (
    Product("flour-wheat-1", "Wheat flour, 1 kg", "Flour", 2.40),
    Product("flour-rye-1", "Rye flour, 1 kg", "Flour", 2.90),
    Product("flour-spelt-5", "Spelt flour, 5 kg", "Flour", 14.50),
    Product("oats-rolled", "Rolled oats, 500 g", "Grain", 1.90),
    Product("barley-pearl", "Pearl barley, 500 g", "Grain", 2.20),
    Product("sourdough-kit", "Sourdough starter kit", "Baking", 18.00),
    Product("banneton-oval", "Oval banneton", "Baking", 24.90),
    Product("scraper", "Dough scraper", "Baking", 6.50),
    Product("mill-hand", "Hand mill", "Mills", 129.00),
    Product("mill-electric", "Electric grain mill", "Mills", 349.00),
)
_FIRST: Final = ("Ada", "Ben", "Chiara", "Dmitri", "Elif", "Femi", "Greta", "Hugo", "Ines", "Jonas", "Kaya", "Lina")
_LAST: Final = ("Adler", "Brandt", "Costa", "Dahl", "Ekwueme", "Fischer", "Garcia", "Haddad", "Ito", "Jansen", "Kaur")
_PLANS: Final = ("free", "free", "free", "club", "club", "business")
_PAGES: Final = (("Home", "/"), ("Flour", "/flour"), ("Mills", "/mills"), ("Recipes", "/recipes"), ("About", "/about"))
_CAMPAIGNS: Final = (None, None, None, ("newsletter", "email"), ("autumn-baking", "cpc"), ("friends", "referral"))
_DEVICES: Final = (
    ("web", "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0", "en-GB", "Europe/London"),
    ("web", "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_5) AppleWebKit/605.1.15 Version/17.5 Safari/605.1.15", "de-DE", "Europe/Berlin"),
    ("ios", "MillShop/3.2 (iPhone; iOS 18.1)", "it-IT", "Europe/Rome"),
    ("android", "MillShop/3.2 (Android 15; Pixel 8)", "fr-FR", "Europe/Paris"),
)  # fmt: skip


@dataclass(slots=True)
class Device:
    """One browser or phone. `user_id` is who is logged in there."""

    anonymous_id: str
    context: Mapping[str, Any]
    user_id: str | None = None
    cart: list[Product] = field(default_factory=list)


@dataclass(slots=True)
class Visitor:
    """A person, who may own several devices and has an account once they signed up. `number` is `seed-count`, so that
    two demos do not share people."""

    number: str
    first_name: str
    last_name: str
    devices: list[Device]
    company: str | None
    plan: str
    account: bool = False
    orders: int = 0

    @property
    def user_id(self) -> str:
        return f"u{self.number}"

    @property
    def email(self) -> str:
        return f"{self.first_name}.{self.last_name}.{self.number}@example.com".lower()


def stream(seed: int, start: datetime) -> Iterator[Event]:
    """Endless events in the order in which they happen, from `start` on. Each is ready to send: it has its `type`,
    `messageId`, `timestamp` and context."""
    shop = _Shop(seed, start.astimezone(UTC))
    while True:
        yield from shop.visit()


class _Shop:
    def __init__(self, seed: int, now: datetime) -> None:
        self.seed, self.random, self.now = seed, Random(seed), now
        self.visitors: list[Visitor] = []
        self.orders = 0

    def visit(self) -> Iterator[Event]:
        """One person comes by, new or returning, sometimes on a device never seen before."""
        visitor = self._somebody()
        device = self._device(visitor)
        yield from self._look_around(device)
        if not visitor.account and self.random.random() < 0.45:
            yield from self._sign_up(visitor, device)
        elif visitor.account and device.user_id is None and self.random.random() < 0.7:
            yield from self._log_in(visitor, device)
        if device.cart and self.random.random() < 0.5:
            yield from self._order(visitor, device)
        if device.user_id is not None and self.random.random() < 0.12:
            yield self._track(device, "Signed Out", {})
            device.user_id = None

    # ── What people do ────────────────────────────────────────────────────────────────────────────────────────────

    def _look_around(self, device: Device) -> Iterator[Event]:
        yield self._page(device)
        for product in self.random.sample(PRODUCTS, self.random.randint(1, 4)):
            yield self._track(device, "Product Viewed", _item(product, 1))
            if self.random.random() < 0.35:
                device.cart.append(product)
                yield self._track(
                    device, "Product Added", _item(product, 1) | {"cart_id": f"c-{device.anonymous_id[:8]}"}
                )
        if self.random.random() < 0.3:
            yield self._page(device)

    def _sign_up(self, visitor: Visitor, device: Device) -> Iterator[Event]:
        visitor.account = True
        device.user_id = visitor.user_id
        created = _iso(self.now)
        yield self._identify(visitor, device, {"createdAt": created})
        yield self._track(device, "Signed Up", {"plan": visitor.plan})
        if visitor.company is not None:
            traits = {"name": visitor.company, "plan": visitor.plan, "employees": self.random.randint(3, 400)}
            group_id = visitor.company.lower().replace(" ", "-")
            yield self._event(device, "group", {"groupId": group_id, "traits": traits})

    def _log_in(self, visitor: Visitor, device: Device) -> Iterator[Event]:
        device.user_id = visitor.user_id
        yield self._identify(visitor, device, {})
        yield self._track(device, "Signed In", {"method": self.random.choice(("password", "link"))})

    def _order(self, visitor: Visitor, device: Device) -> Iterator[Event]:
        self.orders += 1
        items = [_item(product, self.random.randint(1, 3)) for product in device.cart]
        device.cart = []
        revenue = round(sum(item["price"] * item["quantity"] for item in items), 2)
        properties = {
            "order_id": f"o-{self.seed}-{self.orders:05d}",
            "currency": "EUR",
            "revenue": revenue,
            "shipping": 4.90 if revenue < 50 else 0,
            "total": round(revenue + (4.90 if revenue < 50 else 0), 2),
            "products": items,
        }
        yield self._track(device, "Order Completed", properties)
        visitor.orders += 1
        if device.user_id is not None:
            yield self._identify(visitor, device, {"lastOrder": properties["order_id"]})

    # ── Who and where ─────────────────────────────────────────────────────────────────────────────────────────────

    def _somebody(self) -> Visitor:
        if self.visitors and self.random.random() < 0.6:
            return self.random.choice(self.visitors)
        visitor = Visitor(
            number=f"{self.seed}-{len(self.visitors) + 1}",
            first_name=self.random.choice(_FIRST),
            last_name=self.random.choice(_LAST),
            devices=[],
            company=f"{self.random.choice(_LAST)} Bakery" if self.random.random() < 0.2 else None,
            plan=self.random.choice(_PLANS),
        )
        self.visitors.append(visitor)
        return visitor

    def _device(self, visitor: Visitor) -> Device:
        if visitor.devices and (len(visitor.devices) == 3 or self.random.random() < 0.75):
            return self.random.choice(visitor.devices)
        channel, agent, locale, zone = self.random.choice(_DEVICES)
        context: dict[str, Any] = {
            "userAgent": agent,
            "locale": locale,
            "timezone": zone,
            "ip": f"203.0.113.{self.random.randint(1, 254)}",
            "library": {"name": "millrace-demo", "version": "1"},
            "device": {"type": channel},
        }
        if campaign := self.random.choice(_CAMPAIGNS):
            context["campaign"] = {"name": campaign[0], "medium": campaign[1]}
        device = Device(self._uuid(), context)
        visitor.devices.append(device)
        return device

    # ── Calls ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _page(self, device: Device) -> Event:
        name, path = self.random.choice(_PAGES)
        properties = {"title": f"{name} – Mill Shop", "path": path, "url": f"https://shop.example.com{path}"}
        return self._event(device, "page", {"name": name, "properties": properties})

    def _identify(self, visitor: Visitor, device: Device, more: Mapping[str, Any]) -> Event:
        traits = {
            "email": visitor.email,
            "firstName": visitor.first_name,
            "lastName": visitor.last_name,
            "plan": visitor.plan,
            "orders": visitor.orders,
            **more,
        }
        return self._event(device, "identify", {"traits": traits})

    def _track(self, device: Device, event: str, properties: Mapping[str, Any]) -> Event:
        return self._event(device, "track", {"event": event, "properties": dict(properties)})

    def _event(self, device: Device, kind: str, body: Mapping[str, Any]) -> Event:
        self.now += timedelta(milliseconds=self.random.randint(200, 20_000))
        who = {"anonymousId": device.anonymous_id} | ({"userId": device.user_id} if device.user_id else {})
        message_id = f"demo-{self._uuid()}"
        return {
            "type": kind,
            **who,
            **body,
            "messageId": message_id,
            "timestamp": _iso(self.now),
            "context": device.context,
        }

    def _uuid(self) -> str:
        return str(UUID(int=self.random.getrandbits(128), version=4))


def _item(product: Product, quantity: int) -> dict[str, Any]:
    return {
        "product_id": product.sku,
        "sku": product.sku,
        "name": product.name,
        "category": product.category,
        "price": product.price,
        "quantity": quantity,
    }


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
