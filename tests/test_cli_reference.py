"""The generated reference of the command line names every command and option, each with its help."""

import inspect
import sys
from pathlib import Path

import typer

sys.path.append(str(Path(__file__).parents[1] / "docs" / "hooks"))

from cli_reference import cli_reference

from marshtest.cli.app import COMMANDS, app


def test_the_reference_names_every_command_and_option_with_its_help() -> None:
    text, group = cli_reference(), typer.main.get_command(app)
    parts = dict(part.split("\n", 1) for part in text.split("### marshtest ")[1:])
    assert parts.keys() == group.commands.keys()  # type: ignore[attr-defined]
    for functions in COMMANDS.values():
        for function in functions:
            part = parts[function.__name__.rstrip("_")]
            assert (function.__doc__ or "").splitlines()[0] in part
            assert f"```sh\nmarshtest {function.__name__.rstrip('_')}" in part
            for name, parameter in inspect.signature(function).parameters.items():
                (information,) = parameter.annotation.__metadata__
                first = information.default  # an Annotated option's first flag, if it names any
                flags = [first] if str(first).startswith("--") else [name]
                spelt = [f.strip("-").replace("_", "-").split("/")[0].lower() for f in flags]
                assert any(f"`--{s}" in part or f"`{s}".upper() in part.upper() for s in spelt), (
                    name
                )
                assert information.help, name
                assert " ".join(information.help.split()[:4]).replace("|", "\\|") in part
