"""Routes of the management API, each declared once: what serves it and what the OpenAPI document says of it."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from schemas.api import Shape
from schemas.openapi import TEXT, Content, Operation, Parameter

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A declared operation with what serves it. `whole_path`: its last path parameter takes slashes too."""

    operation: Operation
    handler: Handler
    whole_path: bool

    def route(self, guarded: Callable[[Handler], Handler]) -> Route:
        path = self.operation.path.replace("}", ":path}") if self.whole_path else self.operation.path
        handler = self.handler if self.operation.secured is None else guarded(self.handler)
        return Route(path, handler, methods=[self.operation.method])


class Endpoints:
    """Collects endpoints in the order in which they are to be tried. To add a route, put a decorator on its handler: method, path,
    what it is for, the shapes that go in and out, its parameters."""

    def __init__(self) -> None:
        self._endpoints: list[Endpoint] = []
        self._routes: list[Route] = []

    def get(
        self,
        path: str,
        summary: str,
        answer: Content,
        *parameters: Parameter,
        open_to_all: bool = False,
        whole_path: bool = False,
    ) -> Callable[[Handler], Handler]:
        return self._add("GET", path, summary, answer, None, parameters, open_to_all, whole_path)

    def post(
        self,
        path: str,
        summary: str,
        body: type[Shape],
        answer: Content,
        *parameters: Parameter,
        whole_path: bool = False,
    ) -> Callable[[Handler], Handler]:
        return self._add("POST", path, summary, answer, body, parameters, False, whole_path)

    def delete(self, path: str, summary: str, answer: Content, *parameters: Parameter) -> Callable[[Handler], Handler]:
        return self._add("DELETE", path, summary, answer, None, parameters, False, False)

    def _add(
        self,
        method: Literal["GET", "POST", "DELETE"],
        path: str,
        summary: str,
        answer: Content,
        body: type[Shape] | None,
        parameters: Sequence[Parameter],
        open_to_all: bool,
        whole_path: bool,
    ) -> Callable[[Handler], Handler]:
        named = [Parameter(name, f"The {name}.", TEXT, "path") for name in _names(path)]
        operation = Operation(
            method=method,
            path=path,
            summary=summary,
            tag="management" if path.startswith(("/api", "/v1")) else "operation",
            answer=answer,
            parameters=(*named, *parameters),
            body=body,
            errors=(500, 503) if open_to_all else (400, 401, 404, 409, 413, 500, 503, 504),
            secured=None if open_to_all else "apiToken",
        )

        def add(handler: Handler) -> Handler:
            self._endpoints.append(Endpoint(operation, handler, whole_path))
            return handler

        return add

    def operations(self) -> list[Operation]:
        """What the document says of them."""
        return [one.operation for one in self._endpoints]

    def routes(self, guarded: Callable[[Handler], Handler], *, under: str) -> list[Route]:
        """Starlette's routes for the paths that begin with `under` and were not given out before."""
        given = {(route.path, *sorted(route.methods or ())) for route in self._routes}
        made = [one.route(guarded) for one in self._endpoints if one.operation.path.startswith(under)]
        fresh = [route for route in made if (route.path, *sorted(route.methods or ())) not in given]
        self._routes += fresh
        return fresh

    async def unknown(self, request: Request) -> Response:
        """Everything else: nothing is there, or something that is asked in another way."""
        others = sorted({method for route in self._routes for method in _methods(route, request)})
        if others:
            raise HTTPException(405, f"Use {' or '.join(others)} here.", {"Allow": ", ".join(others)})
        raise HTTPException(404)


def _methods(route: Route, request: Request) -> Iterator[str]:
    if route.matches(request.scope)[0] is Match.PARTIAL:
        yield from (method for method in route.methods or () if method != "HEAD")


def _names(path: str) -> Iterator[str]:
    for part in path.split("/"):
        if part.startswith("{"):
            yield part.strip("{}")
