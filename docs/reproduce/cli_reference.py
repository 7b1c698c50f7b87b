"""The reference of the command line, in Markdown, from the commands' own help."""

from collections.abc import Iterator

import typer

from marshtest.cli.app import COMMANDS, app


def cli_reference() -> str:
    """Every command, by what it is for: what it does, an example, its arguments and options."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="marshtest")
    lines: list[str] = []
    for panel, functions in COMMANDS.items():
        lines += [f"## {panel}", ""]
        for function in functions:
            name = function.__name__.rstrip("_")
            command = group.commands[name]
            lines += _described(command, typer.Context(command, parent=context, info_name=name))
    return "\n".join(lines)


def _described(command: typer.core.TyperCommand, context: typer.Context) -> Iterator[str]:
    said, _, example = (command.help or "").partition("Example: ")
    yield f"### marshtest {context.info_name}"
    yield f"\n{said.strip()}\n"
    yield f"```sh\n{example.strip()}\n```\n"
    yield f"`{command.get_usage(context).removeprefix('Usage: ')}`\n"
    yield "| argument or option | what it is |\n| --- | --- |"
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) and parameter.name != "help":
            name, text = (part.replace("|", "\\|") for part in record)
            yield f"| `{' '.join(name.split())}` | {' '.join(text.split())} |"
    yield ""
