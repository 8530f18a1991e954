"""``completion``."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(context: click.Context, *, shell: str) -> None:
    r"""Print the script that completes commands in a shell.

    \b
    bash:  eval "$(ossa-registry completion bash)"            in ~/.bashrc
    zsh:   eval "$(ossa-registry completion zsh)"             in ~/.zshrc, after compinit
    fish:  ossa-registry completion fish | source             in config.fish

    Names of services and capabilities complete live, from the registry that the command line or the environment names.
    """
    kind = get_completion_class(shell)
    program = context.find_root()
    if kind is not None:
        click.echo(kind(program.command, {}, "ossa-registry", "_OSSA_REGISTRY_COMPLETE").source())
