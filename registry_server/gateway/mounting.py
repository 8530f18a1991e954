"""``rest_application``: the REST API as a part of another program's aiohttp application."""

from typing import Final

from aiohttp import web

from registry_server.admission import Admission
from registry_server.config import Settings
from registry_server.gateway.answers import Answer
from registry_server.gateway.bodies import BODY_TIMEOUT_SECONDS
from registry_server.gateway.browsers import BrowserRules
from registry_server.gateway.envelope import Envelope
from registry_server.gateway.middleware import Middleware
from registry_server.gateway.routes import BASE, ROUTES, Api
from registry_server.instrumentation.problems import Problems
from registry_server.instrumentation.tracing import Tracer
from registry_server.registry import ServiceRegistry
from registry_server.runtime.clock import system_clock
from registry_server.security.guard import Guard

_ANY_PATH: Final = "/{path:.*}"


def rest_application(
    registry: ServiceRegistry, settings: Settings, *, problems: Problems, tracer: Tracer | None
) -> web.Application:
    """Return an application with the routes of the API, without their prefix; see ``EmbeddedRegistry.rest_api``.

    The server of the program accepts the connections, with its own limits for them.

    Args:
        registry: The use cases.
        settings: Policy, and limits of callers and requests.
        problems: Problems of the process.
        tracer: Creates a span for each request; ``None`` = tracing is off.

    Raises:
        ConfigurationError: The policy is not valid.
    """
    guard, envelope = Guard(settings.security, settings.limits), Envelope(system_clock)
    api = Api(registry, envelope, settings.http, _no_metrics, BODY_TIMEOUT_SECONDS, problems)
    browsers = BrowserRules(settings.http, needs_credential=settings.security.policy_file is not None)
    middleware = Middleware(envelope, Admission(guard, settings.log, tracer), settings.http, browsers)
    app = web.Application()
    routes = [route._replace(path=route.path.removeprefix(BASE)) for route in ROUTES if route.path.startswith(BASE)]
    middleware.add_routes(routes, api, base="/")

    async def handle(request: web.Request) -> web.StreamResponse:
        resource = request.match_info.route.resource
        prefix = resource.canonical.removesuffix("/{path}") if resource else ""
        answer = await middleware.handle(request, prefix)
        return answer.response() if isinstance(answer, Answer) else answer

    app.router.add_route("*", _ANY_PATH, handle)

    async def end_streams(_: web.Application) -> None:
        api.end_streams()

    async def close_guard(_: web.Application) -> None:
        await guard.close()

    app.on_shutdown.append(end_streams)
    app.on_cleanup.append(close_guard)
    return app


async def _no_metrics() -> bytes:
    return b""  # the route is not mounted
