"""The generated reference of the command line names every command and option, each with its help."""

import sys
from pathlib import Path

import typer

sys.path.append(str(Path(__file__).parents[1] / "docs" / "reproduce"))

from cli_reference import cli_reference

from marshtest.cli.app import COMMANDS, app


def test_the_reference_names_every_command_and_option_with_its_help() -> None:
    parts = dict(part.split("\n", 1) for part in cli_reference().split("### marshtest ")[1:])
    functions = {f.__name__.rstrip("_"): f for panel in COMMANDS.values() for f in panel}
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert parts.keys() == functions.keys() == commands.keys()
    for name, part in parts.items():
        assert (functions[name].__doc__ or "").splitlines()[0] in part
        assert f"```sh\nmarshtest {name} " in part
        lines = {line.split("|")[1].split()[0].strip("`"): line for line in part.splitlines()[10:]
                 if line.startswith("| `")}  # fmt: skip
        for parameter in commands[name].params:
            spelt = parameter.opts[0] + "..." * (parameter.nargs == -1)
            assert " ".join(parameter.help.split()[:4]).replace("|", "\\|") in lines[spelt]
