"""``keys``: makes API keys."""

import sys

import click


@click.group("keys")
def command() -> None:
    """Make API keys for agents and people."""


@command.command()
def create() -> None:
    """Make a key, and the hash of it that a policy file has.

    The key is shown this once and kept nowhere. A server needs to know its hash alone.
    """
    from registry_server.security.keys import hash_text, new_key  # noqa: PLC0415 - late: it is of the server

    key = new_key()
    click.echo(f"key:  {key}")
    click.echo(f"hash: {hash_text(key)}")


@command.command("hash")
def hash_() -> None:
    """Tell the hash of a key that is read from standard input, so that no list of processes shows it."""
    from registry_server.security.keys import hash_text  # noqa: PLC0415 - as above

    key = sys.stdin.readline().strip()
    if not key:
        raise click.ClickException("no key on standard input")
    click.echo(hash_text(key))
