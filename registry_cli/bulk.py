"""Registers any number of services: in batches, or one by one where each must be new."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final

import click

from registry_cli.calls import Call
from registry_cli.files import Given
from registry_client import RegistryError, RegistryUnavailable, Service

_BATCH: Final = 100
"""Services in one call; the registry takes 500. Larger ones are hardly faster and let the bar jump."""
_BATCH_BYTES: Final = 2 * 1024 * 1024
"""The registry takes messages of 4 MiB."""
_AT_ONCE: Final = 16
"""Calls at a time, where each service needs one of its own."""

Result = Service | RegistryError


async def register_all(call: Call, given: Sequence[Given], *, create_only: bool) -> list[tuple[Given, Result]]:
    """Registers services, with a bar on a terminal if there are many.

    Returns:
        For each service, in order, how it is registered now or why it is not. Once nobody answers, the rest is not
        tried: the last result is then a ``RegistryUnavailable``, and there may be fewer results than services.
    """
    results: list[tuple[Given, Result]] = []
    hidden = call.out.quiet or len(given) <= _BATCH or not sys.stderr.isatty()
    with click.progressbar(
        length=len(given), label="registering", file=sys.stderr, hidden=hidden, show_pos=True, color=call.out.color
    ) as bar:
        async for batch in _one_by_one(call, given) if create_only else _in_batches(call, given):
            results += batch
            bar.update(len(batch))
    return results


async def _in_batches(call: Call, given: Sequence[Given]) -> AsyncIterator[list[tuple[Given, Result]]]:
    for batch in _batches(given):
        try:
            answers: Sequence[Result] = await call.client.batch_register_services(each.service for each in batch)
        except RegistryError as error:
            yield [(batch[0], error)]
            return
        yield list(zip(batch, answers, strict=True))


async def _one_by_one(call: Call, given: Sequence[Given]) -> AsyncIterator[list[tuple[Given, Result]]]:
    async def register(each: Given) -> tuple[Given, Result]:
        try:
            return each, await call.client.register_service(each.service, create_only=True)
        except RegistryError as error:
            return each, error

    for at in range(0, len(given), _AT_ONCE):
        results = await asyncio.gather(*map(register, given[at : at + _AT_ONCE]))
        yield results
        if any(isinstance(result, RegistryUnavailable) for _, result in results):
            return


def _batches(given: Sequence[Given]) -> Iterator[list[Given]]:
    batch: list[Given] = []
    size = 0
    for each in given:
        more = each.service.ByteSize()
        if batch and (len(batch) == _BATCH or size + more > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += more
    if batch:
        yield batch
