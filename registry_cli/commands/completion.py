"""The command ``completion``."""

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(context: click.Context, *, shell: str) -> None:
    """Print a shell completion script.

    \b
    bash:  eval "$(ossa-registry completion bash)"    in ~/.bashrc
    zsh:   eval "$(ossa-registry completion zsh)"     in ~/.zshrc, after compinit
    fish:  ossa-registry completion fish | source     in config.fish

    Service and capability names are completed from the registry that the command line or the environment selects.
    """  # noqa: D301 - click needs the backspace character, which keeps the line breaks
    completion_class = get_completion_class(shell)
    root = context.find_root()
    if completion_class is not None:
        click.echo(completion_class(root.command, {}, "ossa-registry", "_OSSA_REGISTRY_COMPLETE").source())
