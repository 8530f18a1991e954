"""``register``."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from registry_cli.bulk import Result, register_all
from registry_cli.calls import NAMED, Call, RegistryCommand, talks
from registry_cli.documents import document
from registry_cli.exits import Exit
from registry_cli.files import Given, read
from registry_cli.filters import labels_of
from registry_cli.keep_alive import keep
from registry_client import HealthCheck, RegistryError, RegistryUnavailable, Service, make_service

_PROBES: Final = tuple(field.name for field in HealthCheck.DESCRIPTOR.oneofs_by_name["probe"].fields)
_SECONDS: Final = click.FloatRange(0, 86_400)


@click.command(cls=RegistryCommand)
@click.argument("name", required=False)
@click.argument("endpoint", required=False)
@click.option("-f", "--file", "files", multiple=True, help="YAML, JSON, a directory of them, or - for stdin; repeat.")
@click.option("--version", help="Version of the service; needed with NAME.")
@click.option("--capability", "capabilities", metavar="NAME[@VERSION]", multiple=True, help="What it can do; repeat.")
@click.option("--tag", "tags", multiple=True, help="A tag; repeat.")
@click.option("--label", "labels", metavar="KEY=VALUE", multiple=True, callback=labels_of, help="A label; repeat.")
@click.option("--environment", help="Such as production.")
@click.option("--group", help="Logical service that replicas share.")
@click.option("--description", help="For people.")
@click.option("--author", help="Person or team.")
@click.option("--documentation", help="Where its documentation is.")
@click.option("--health-check", type=click.Choice(_PROBES), help="How it is probed; else the scheme of ENDPOINT says.")
@click.option("--ttl", type=_SECONDS, metavar="SECONDS", help="Length of the lease; 0 = permanent.")
@click.option("--create-only", is_flag=True, help="Fail for names that exist.")
@click.option("--dry-run", is_flag=True, help="Show what the flags and files hold, and ask nobody.")
@click.option("--keep-alive", is_flag=True, help="Renew the leases until Ctrl-C or SIGTERM, then unregister.")
@click.option("--replicas", is_flag=True, help="Take a unique name in the group NAME; with --keep-alive.")
@click.option("--drain", type=_SECONDS, metavar="SECONDS", help="Time in maintenance at the end; with --keep-alive.")
@talks(*NAMED)
async def command(call: Call, *, name: str | None, endpoint: str | None, files: Sequence[str], **options: Any) -> Exit:
    r"""Register services, from flags or files.

    \b
    ossa-registry register NAME ENDPOINT --version 1.0.0 --capability translate@2.1.0
    ossa-registry register -f agents.yaml -f more/

    A file holds services as `get -o yaml` prints them: one or several documents, an object or an array. Each service
    stands alone: those that fail are told with their place, the others are registered, and the exit code is 1.
    """
    how = {key: options.pop(key) for key in ("create_only", "dry_run", "keep_alive", "replicas", "drain")}
    fields = {key: value for key, value in options.items() if value not in (None, (), {})}
    _check(name, endpoint, files, how, fields)
    given = [each for file in files for each in read(file)] if files else [_from_flags(name, endpoint, fields)]
    refused = _refuse(call, given)
    good = [each for each in given if id(each) not in refused]
    if how["dry_run"]:
        _show(call, [each.service for each in good], single=not files, word="would be registered")
        call.out.remark("only the shape was checked; the rules are the registry's")
        return Exit.USAGE if refused else Exit.OK
    if how["keep_alive"]:
        if refused:
            return Exit.USAGE
        return await keep(call, good, replicas=how["replicas"], drain=how["drain"] or 0.0)
    results = await register_all(call, good, create_only=how["create_only"]) if good else []
    code = _tell_failures(call, results, len(good), single=not files)
    _show(call, [result for _, result in results if isinstance(result, Service)], single=not files, word="registered")
    return code or (Exit.FAILED if refused else Exit.OK)


def _check(
    name: str | None, endpoint: str | None, files: Sequence[str], how: Mapping[str, Any], fields: Mapping[str, Any]
) -> None:
    """Refuses flags that do not go together: one of them would have no effect."""
    if files and (name or fields):
        raise click.UsageError("Give either NAME and ENDPOINT or files: what is in a file is not changed by flags.")
    if not files and not (name and endpoint):
        raise click.UsageError("Missing NAME and ENDPOINT, or -f FILE.")
    if not files and "version" not in fields:
        raise click.UsageError("Missing --version of the service.")
    if how["keep_alive"] and (how["create_only"] or how["dry_run"]):
        raise click.UsageError("--keep-alive goes without --create-only and --dry-run.")
    if not how["keep_alive"] and (how["replicas"] or how["drain"] is not None):
        raise click.UsageError("--replicas and --drain go with --keep-alive.")


def _from_flags(name: str | None, endpoint: str | None, fields: dict[str, Any]) -> Given:
    return Given("", make_service(name or "", endpoint or "", **fields), [])


def _refuse(call: Call, given: Sequence[Given]) -> set[int]:
    """Tells what has the wrong shape or is there twice; gives which those are."""
    refused: set[int] = set()
    places: dict[str, str] = {}
    for each in given:
        name = each.service.name
        for field, text in each.violations:
            call.out.error(f"{each.place}: {field}: {text}")
        if name and name in places:
            call.out.error(f"{each.place}: name: {name!r} is given before, in {places[name]}")
        if each.violations or (name and name in places):
            refused.add(id(each))
        places.setdefault(name, each.place)
    return refused


def _tell_failures(call: Call, results: Sequence[tuple[Given, Result]], asked: int, *, single: bool) -> Exit:
    failures = [(each, result) for each, result in results if isinstance(result, RegistryError)]
    for each, error in failures:
        failure = call.failure(error)
        place = each.place and f"{each.place}: "
        named = "" if single or isinstance(error, RegistryUnavailable) else f"{each.service.name}: "
        for line in failure.message.splitlines():
            call.out.error(f"{place}{named}{line}")
    if len(results) < asked:
        call.out.error(f"{asked - len(results)} more were not tried")
    if not failures:
        return Exit.OK
    errors = [error for _, error in failures]
    away = [error for error in errors if isinstance(error, RegistryUnavailable)]
    return call.failure(away[0] if away else errors[0]).code if single or away else Exit.FAILED


def _show(call: Call, services: Sequence[Service], *, single: bool, word: str) -> None:
    if call.out.format == "name":
        call.out.names(service.name for service in services)
    elif not call.out.is_table:
        documents = [document(service) for service in services]
        for each in documents:
            if not each["revision"]:  # not registered yet
                del each["revision"]
        if documents or not single:
            call.out.data(documents[0] if single else documents)
    else:
        for service in services:
            call.out.line(f"{service.name} {word}" + (f", revision {service.revision}" if service.revision else ""))
