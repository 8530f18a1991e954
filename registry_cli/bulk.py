"""Registration of any number of services: in batches, or individually with ``--create-only``."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

import click

from registry_cli.calls import CommandContext
from registry_cli.files import ServiceInput
from registry_client import RegistryError, RegistryUnavailable, Service

_BATCH_SIZE: Final = 100
"""Services in one call; the registry accepts 500. Larger batches are hardly faster and make the progress bar jump."""
_BATCH_BYTES: Final = 2 * 1024 * 1024
"""Half of the registry's message limit of 4 MiB."""
_CONCURRENT_CALLS: Final = 16
"""Concurrent calls with ``--create-only``, which needs one call per service."""

Result = Service | RegistryError


async def register_all(
    context: CommandContext, inputs: Sequence[ServiceInput], *, create_only: bool
) -> list[tuple[ServiceInput, Result]]:
    """Register services, with a progress bar on a terminal if there are many.

    Returns:
        One result for each service, in order: the service as it is registered now, or its error. Once the registry is
        unavailable, the remaining services are not attempted: the last result is then a ``RegistryUnavailable``, and
        there may be fewer results than services.
    """
    results: list[tuple[ServiceInput, Result]] = []
    hidden = context.out.quiet or len(inputs) <= _BATCH_SIZE or not sys.stderr.isatty()
    with click.progressbar(
        length=len(inputs), label="registering", file=sys.stderr, hidden=hidden, show_pos=True, color=context.out.color
    ) as bar:
        async for batch in _one_by_one(context, inputs) if create_only else _in_batches(context, inputs):
            results += batch
            bar.update(len(batch))
    return results


async def _in_batches(
    context: CommandContext, inputs: Sequence[ServiceInput]
) -> AsyncIterator[list[tuple[ServiceInput, Result]]]:
    for batch in _split_batches(inputs):
        try:
            results: Sequence[Result] = await context.client.batch_register_services(each.service for each in batch)
        except RegistryError as error:
            yield [(batch[0], error)]
            return
        yield list(zip(batch, results, strict=True))


async def _one_by_one(
    context: CommandContext, inputs: Sequence[ServiceInput]
) -> AsyncIterator[list[tuple[ServiceInput, Result]]]:
    async def register(each: ServiceInput) -> tuple[ServiceInput, Result]:
        try:
            return each, await context.client.register_service(each.service, create_only=True)
        except RegistryError as error:
            return each, error

    for start in range(0, len(inputs), _CONCURRENT_CALLS):
        results = await asyncio.gather(*map(register, inputs[start : start + _CONCURRENT_CALLS]))
        yield results
        if any(isinstance(result, RegistryUnavailable) for _, result in results):
            return


def _split_batches(inputs: Sequence[ServiceInput]) -> Iterator[list[ServiceInput]]:
    batch: list[ServiceInput] = []
    batch_bytes = 0
    for each in inputs:
        service_bytes = each.service.ByteSize()
        if batch and (len(batch) == _BATCH_SIZE or batch_bytes + service_bytes > _BATCH_BYTES):
            yield batch
            batch, batch_bytes = [], 0
        batch.append(each)
        batch_bytes += service_bytes
    if batch:
        yield batch
