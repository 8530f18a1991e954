"""The command group ``keys``, for API keys."""

import sys

import click


@click.group("keys")
def command() -> None:
    """Create and hash API keys."""


@command.command()
def create() -> None:
    """Create a key, and its hash for a policy file.

    The key is shown only once and stored nowhere. The server needs only the hash.
    """
    from registry_server.security.keys import hash_text, new_key  # noqa: PLC0415 - other commands must not load the server

    key = new_key()
    click.echo(f"key:  {key}")
    click.echo(f"hash: {hash_text(key)}")


@command.command("hash")
def hash_() -> None:
    """Print the hash of a key that is read from standard input, where process listings do not show it."""
    from registry_server.security.keys import hash_text  # noqa: PLC0415 - as above

    key = sys.stdin.readline().strip()
    if not key:
        raise click.ClickException("no key on standard input")
    click.echo(hash_text(key))
