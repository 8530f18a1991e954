"""The command ``register``."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from ossa_common.json_shape import PROBE_TYPES
from registry_cli.bulk import Result, register_all
from registry_cli.calls import DATA_AND_NAME_FORMATS, CommandContext, registry_command
from registry_cli.exits import Exit, Failure
from registry_cli.files import ServiceInput, print_invalid, read_services
from registry_cli.filters import parse_labels
from registry_cli.keep_alive import keep_registered
from registry_cli.services import show_services
from registry_client import RegistryError, RegistryUnavailable, Service, make_service

_DURATION_SECONDS: Final = click.FloatRange(0, 86_400)
_REVISION_SECONDS: Final = 2.0
"""Timeout of the call that finds unchanged services: with ``--retry`` it delays the registration."""


@registry_command(*DATA_AND_NAME_FORMATS)
@click.argument("name", required=False)
@click.argument("endpoint", required=False)
@click.option(
    "-f", "--file", "files", multiple=True, help="YAML or JSON file, a directory, or - for stdin; repeatable."
)
@click.option("--version", help="Version of the service; required with NAME.")
@click.option("--capability", "capabilities", metavar="NAME[@VERSION]", multiple=True, help="Capability; repeatable.")
@click.option("--tag", "tags", multiple=True, help="Tag; repeatable.")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, callback=parse_labels, help="Label; repeatable.")
@click.option("--environment", help="Environment, such as production.")
@click.option("--group", help="Logical service that replicas share.")
@click.option("--description", help="Description.")
@click.option("--author", help="Person or team.")
@click.option("--documentation", help="URL of the documentation.")
@click.option("--health-check", type=click.Choice(PROBE_TYPES), help="Probe type; default: by the scheme of ENDPOINT.")
@click.option("--ttl", type=_DURATION_SECONDS, metavar="SECONDS", help="Duration of the lease; 0 = permanent.")
@click.option("--create-only", is_flag=True, help="Fail for names that are registered already.")
@click.option("--dry-run", is_flag=True, help="Show the services without calling the registry.")
@click.option("--keep-alive", is_flag=True, help="Renew the leases until Ctrl-C or SIGTERM, then unregister.")
@click.option("--replicas", is_flag=True, help="Register under a unique name in the group NAME; with --keep-alive.")
@click.option(
    "--drain",
    type=_DURATION_SECONDS,
    metavar="SECONDS",
    help="Time of draining before unregistration; with --keep-alive.",
)
async def command(
    context: CommandContext, *, name: str | None, endpoint: str | None, files: Sequence[str], **options: Any
) -> Exit:
    """Register services from flags or files.

    \b
    ossa-registry register NAME ENDPOINT --version 1.0.0 --capability speak@2.1.0
    ossa-registry register -f agents.yaml -f more/

    A file contains services in the format of `get -o yaml`: one or several documents, an object or an array. Each
    service is registered independently: failures are reported with their location, and the exit code is then 1.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    modes = {key: options.pop(key) for key in ("create_only", "dry_run", "keep_alive", "replicas", "drain")}
    fields = {key: value for key, value in options.items() if value not in (None, (), {})}
    _check_usage(name, endpoint, files, modes, fields)
    if files:
        inputs, unreadable = read_services(files)
        if unreadable and not inputs:
            raise Failure("\n".join(failure.message for failure in unreadable), Exit.USAGE)
        for failure in unreadable:
            context.out.print_error(failure.message)
    else:
        inputs, unreadable = [ServiceInput("", make_service(name or "", endpoint or "", **fields), [])], []
        _warn_about_versions(context, inputs[0].service)
    invalid = print_invalid(context.out, inputs)
    valid = [each for each in inputs if id(each) not in invalid]
    failed = bool(invalid or unreadable)
    if modes["dry_run"]:
        services = [each.service for each in valid]
        lines = [f"{service.name} would be registered" for service in services]
        show_services(context.out, services, single=not files, lines=lines)
        context.out.print_notice("only the structure was checked; the registry validates the values")
        return Exit.USAGE if failed else Exit.OK
    if modes["keep_alive"]:
        if failed:
            return Exit.USAGE
        return await keep_registered(context, valid, replicas=modes["replicas"], drain=modes["drain"] or 0.0)
    newest = await _newest_revision(context) if valid and context.out.is_table else 0
    results = await register_all(context, valid, create_only=modes["create_only"]) if valid else []
    code = _print_failures(context, results, len(valid), single=not files)
    registered = [result for _, result in results if isinstance(result, Service)]
    lines = [f"{each.name} {_change(each, newest)}, revision {each.revision}" for each in registered]
    show_services(context.out, registered, single=not files, lines=lines)
    return code or (Exit.FAILED if failed else Exit.OK)


async def _newest_revision(context: CommandContext) -> int:
    """Return the revision of the registry before the registrations, which report failures themselves; 0 = unknown."""
    try:
        seconds = min(context.connection.timeout, _REVISION_SECONDS)
        return (await context.client.get_registry_health(timeout=seconds)).revision
    except RegistryError:
        return 0


def _change(service: Service, newest: int) -> str:
    """Return what a registration did, if ``newest`` was the revision of the registry before it."""
    if service.revision <= newest:
        return "unchanged"
    return "registered" if service.registered_at == service.updated_at else "updated"


def _warn_about_versions(context: CommandContext, service: Service) -> None:
    """Print a notice for texts after ``@`` that are unlikely to be meant as a version."""
    for each in service.capabilities:
        if each.version and not any(map(str.isdigit, each.version)):
            context.out.print_notice(
                f"{each.name}@{each.version}: the capability is {each.name!r}, its version {each.version!r}, which is "
                "not a version number; filters match it as text only"
            )


def _check_usage(
    name: str | None, endpoint: str | None, files: Sequence[str], modes: Mapping[str, Any], fields: Mapping[str, Any]
) -> None:
    """Reject combinations in which a flag would have no effect."""
    if files and (name or fields):
        raise click.UsageError("Use either NAME and ENDPOINT or --file: flags do not change services from files.")
    if not files and not (name and endpoint):
        raise click.UsageError("Missing NAME and ENDPOINT, or -f FILE.")
    if not files and "version" not in fields:
        raise click.UsageError("Missing --version of the service.")
    if modes["keep_alive"] and (modes["create_only"] or modes["dry_run"]):
        raise click.UsageError("--keep-alive cannot be combined with --create-only or --dry-run.")
    if not modes["keep_alive"] and (modes["replicas"] or modes["drain"] is not None):
        raise click.UsageError("--replicas and --drain require --keep-alive.")


def _print_failures(
    context: CommandContext, results: Sequence[tuple[ServiceInput, Result]], attempted: int, *, single: bool
) -> Exit:
    failures = [(each, result) for each, result in results if isinstance(result, RegistryError)]
    for each, error in failures:
        failure = context.failure(error)
        location = each.location and f"{each.location}: "
        prefix = "" if single or isinstance(error, RegistryUnavailable) else f"{each.service.name}: "
        for line in failure.message.splitlines():
            context.out.print_error(f"{location}{prefix}{line}")
    if len(results) < attempted:
        context.out.print_error(f"{attempted - len(results)} more services were not attempted")
    if not failures:
        return Exit.OK
    errors = [error for _, error in failures]
    unavailable = [error for error in errors if isinstance(error, RegistryUnavailable)]
    return context.failure(unavailable[0] if unavailable else errors[0]).code if single or unavailable else Exit.FAILED
