"""An example subscriber: prints all services, then every change, without gaps across registry outages.

Configured by ``$REGISTRY``, ``$OSSA_REGISTRY_TOKEN`` and the filter ``$CAPABILITY``; see README.md. Prints one line per
event: ``REVISION KIND NAME STATUS ENDPOINT REASON``.
"""

import asyncio
import os

from registry_client import Event, EventReason, EventType, HealthStatus, RegistryClient, RegistryError


def format_event(event: Event) -> str:
    kind = EventType.Name(event.type).removeprefix("EVENT_TYPE_").removeprefix("SERVICE_")
    if not event.HasField("service"):
        return f"{event.revision} {kind} {event.error}"
    service = event.service
    status = HealthStatus.Name(service.health.status).removeprefix("HEALTH_STATUS_")
    reason = EventReason.Name(event.reason).removeprefix("EVENT_REASON_")
    return f"{event.revision} {kind} {service.name} {status} {service.endpoint} {reason}"


async def main() -> None:
    client = RegistryClient(
        os.environ.get("REGISTRY") or "localhost:50051", token=os.environ.get("OSSA_REGISTRY_TOKEN") or None
    )
    # The SDK stores the cursor, backs off and resumes; if the cursor has expired, it takes a snapshot and yields the
    # difference. It raises only errors that a retry cannot fix.
    async with client, client.watch(include_snapshot=True, capability=os.environ.get("CAPABILITY", "")) as watch:
        try:
            async for event in watch:
                print(format_event(event), flush=True)
        except RegistryError as error:
            raise SystemExit(f"refused: {error}") from error


if __name__ == "__main__":
    asyncio.run(main())
