"""The command ``import``."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from google.protobuf.message import Message

from ossa.registry.v1.service_pb2 import Capability, Health, Metadata, Service
from ossa_common.json_reader import read_service
from ossa_common.json_shape import json_keys, json_path
from ossa_common.violations import inside
from registry_cli.bulk import register_all
from registry_cli.calls import CommandContext, registry_command
from registry_cli.exits import Exit, Failure
from registry_cli.files import ServiceInput
from registry_cli.text import escape
from registry_client import RegistryError, RegistryUnavailable, ServiceExists

_INNER: Final[Mapping[str, type[Message]]] = {"health": Health, "metadata": Metadata}


@registry_command("table")
@click.argument("source", metavar="ossa", type=click.Choice(("ossa",)))
@click.option(
    "--redis",
    "url",
    metavar="URL",
    required=True,
    envvar="OSSA_REGISTRY_IMPORT_REDIS",
    show_envvar=True,
    help="Redis of the reference implementation, as in the setting redis.url of `serve`.",
)
@click.option("--key-prefix", metavar="PREFIX", default="ossa:services", show_default=True, help="Prefix of its keys.")
@click.option("--dry-run", is_flag=True, help="Show what would be registered, without calling the registry.")
async def command(context: CommandContext, *, source: str, url: str, key_prefix: str, dry_run: bool) -> Exit:
    """Register the services in the Redis of another registry.

    \b
    ossa-registry import ossa --redis redis://localhost:6379 --dry-run

    The source `ossa` is the OSSA reference implementation in TypeScript. The command only reads its Redis. All
    documents are checked first, with a line for each; valid ones are then registered. Names that are registered already
    remain as they are, so the command can be repeated.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    del source
    documents = await _read_documents(context, url, key_prefix)
    checked = [(escape(document.key), *_check(document)) for document in documents]  # keys may contain line breaks
    valid = [ServiceInput(key, service, []) for key, service, problems, _ in checked if not problems]
    for key, service, problems, notes in checked:
        for problem in problems:
            context.out.print_error(f"{key}: {problem}")
        if not problems:
            context.out.print_line(f"{service.name} {'would be registered' if dry_run else 'is valid'}{notes}")
    refused = len(checked) - len(valid)
    existing = registered = 0
    for each, result in await register_all(context, [] if dry_run else valid, create_only=True):
        if isinstance(result, RegistryUnavailable):
            raise result
        if isinstance(result, ServiceExists):
            existing += 1
            context.out.print_line(f"{each.service.name} was registered before, and is unchanged")
        elif isinstance(result, RegistryError):
            refused += 1
            context.out.print_error(f"{each.location}: {context.failure(result).message}")
        else:
            registered += 1
            context.out.print_line(f"{each.service.name} registered, revision {result.revision}")
    counts = f"{len(valid)} would be registered" if dry_run else f"{registered} registered, {existing} before"
    context.out.print_notice(f"{len(checked)} documents: {counts}, {refused} refused")
    return Exit.FAILED if refused else Exit.OK


async def _read_documents(context: CommandContext, url: str, key_prefix: str) -> list[Any]:
    # Imported here, because the other commands must not load the server.
    from registry_server.errors import ConfigurationError, StoreUnavailable  # noqa: PLC0415
    from registry_server.store.foreign_documents import read_documents  # noqa: PLC0415

    try:
        documents = await read_documents(url, key_prefix, context.connection.timeout)
    except ConfigurationError as error:
        raise Failure(str(error).replace("redis.url", "--redis"), Exit.USAGE) from error
    except StoreUnavailable as error:
        raise Failure(f"cannot read the Redis of --redis: {error}", Exit.UNAVAILABLE) from error
    own = [each for each in documents if each.is_own]
    if own:
        context.out.print_notice(f"{len(own)} documents were written by ossa-registry; they are skipped")
    if len(own) == len(documents):
        context.out.print_notice(f"no documents of the reference implementation under {key_prefix}:")
    return [each for each in documents if not each.is_own]


def _check(document: Any) -> tuple[Service, Sequence[str], str]:
    """Return the service of a document, its problems, and notes for its line."""
    from registry_server.model.validation import service_violations  # noqa: PLC0415 - as above

    if not isinstance(document.content, dict):
        return Service(), ["is not a JSON object of at most 1 MiB"], ""
    content, unknown = _known_part(document.content)
    if document.permanent:
        content["ttlSeconds"] = 0
    service, found = read_service(content)
    found = found or service_violations(service)
    problems = [f"{json_path(field.removeprefix('service.'))}: {text}" for field, text in found]
    notes = ["permanent, because its key does not expire"] if document.permanent else []
    if unknown:
        notes.append(f"without {', '.join(unknown)}, which {'are no fields' if unknown[1:] else 'is no field'}")
    return service, problems, "".join(f"; {note}" for note in notes)


def _known_part(document: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a document without the members that a service does not have, and their paths."""
    unknown: list[str] = []

    def known(value: Any, kind: type[Message], at: str) -> Any:
        if not isinstance(value, dict):
            return value
        keys = json_keys(kind.DESCRIPTOR)
        unknown.extend(inside(at, key) for key in value if key not in keys)
        return {key: item for key, item in value.items() if key in keys}

    result: dict[str, Any] = known(document, Service, "")
    for key, kind in _INNER.items():
        result[key] = known(result.get(key), kind, key)
    if isinstance(capabilities := result.get("capabilities"), list):
        result["capabilities"] = [known(each, Capability, f"capabilities[{i}]") for i, each in enumerate(capabilities)]
    return result, unknown
