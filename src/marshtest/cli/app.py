"""The command line: which commands there are, and how a command ends."""

import gc
import io
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from marshtest.cli import (
    audit,
    catalogue,
    certificate,
    check,
    plan,
    report,
    run,
    score,
    screen,
    sweep,
)
from marshtest.plumbing.errors import MarshtestError, first_line
from marshtest.plumbing.malloc import keep_freed_memory

COMMANDS = {  # by what they are for; each is a function of its own name
    "Experiments": (
        check.check,
        plan.explain,
        run.run,
        score.score,
        sweep.sweep,
        sweep.status,
        sweep.clean,
        run.study,
    ),
    "Audits": (plan.plan, audit.dose, audit.audit, audit.calibrate, certificate.verify),
    "Evidence": (sweep.rows, report.report, report.compare, report.leaderboard),
    "Look up": (catalogue.list_,),
}
RENAMED = {"hypotheses": "study", "test": "audit"}  # names of version 0.1, to go with the next
RESUMED = {"run", "score", "sweep"}  # commands that keep what is finished, and begin there again


class Commands(TyperGroup):
    """The commands, with one rule for how they end.

    Only a command's own `typer.Exit` gives 1 or 3, which are answers. Bad input is one line and 2, Ctrl-C
    one line and 130, a closed pipe nothing and 141, and 2 is what becomes of everything else, whoever
    raised it.
    """

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Find a command by its name, or by the name that it had before."""
        if new := RENAMED.get(args[0]):
            screen.warn(f"`marshtest {args[0]}` is now `marshtest {new}`; the old name will go.")
            args = [new, *args[1:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run a command, and end as the class says."""
        try:
            answer = super().invoke(ctx)
            if sys.stdout is not None:  # a service may have closed it
                sys.stdout.flush()  # a full disk or a closed pipe is noticed here, not as Python ends
            return answer
        except MarshtestError as error:
            _fail(str(error))
        except BrokenPipeError:
            _end_unread()
        except OSError as error:
            # Without a file's name it is standard output, which cannot be written a second time.
            if error.filename is None:
                _forget_output()
            _fail(f"{error.filename or 'output'}: {error.strerror or error}.")
        except KeyboardInterrupt:
            resumed = ctx.invoked_subcommand in RESUMED
            goes_on = "; the same command goes on where this one was"
            screen.warn(f"stopped{goes_on if resumed else ''}.")
            sys.exit(130)
        except MemoryError:
            _fail("out of memory.")
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):  # rich, too, ends at a closed pipe
                _end_unread()
            _fail(f"something that was called tried to end the command (SystemExit: {error}).")
        except (Exception, BaseExceptionGroup) as error:
            if type(error).__module__.startswith(("typer", "click")):
                raise  # an exit, help, or wrong use, which typer tells
            traceback.print_exc()
            _fail(
                f"a fault of marshtest itself ({type(error).__name__}: {first_line(error)}). "
                "Please report it with the traceback above."
            )


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Does an unlearning algorithm really remove the data? Poison it first, and look.",
)
for panel, functions in COMMANDS.items():
    for function in functions:
        app.command(function.__name__.rstrip("_"), rich_help_panel=panel)(function)


def main() -> None:
    """Entry point."""
    sys.unraisablehook = raise_again
    # Here and not in a library call: this process is the command's own.
    keep_freed_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):  # an encoding without ε must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    gc.set_threshold(100_000, 10, 10)  # looking for garbage took a tenth of the imports' time
    app()


def raise_again(lost: "sys.UnraisableHookArgs") -> None:
    """Let Ctrl-C come again that came in a destructor, where Python prints it and goes on."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(lost)
        return
    # A signal, which ends a wait, once the destructor is done.
    main = threading.main_thread().ident
    again = threading.Timer(0.01, signal.pthread_kill, (main, signal.SIGINT))
    again.daemon = True
    again.start()


def _forget_output() -> None:
    """Let what could not be written go nowhere; Python would try again as it ends, and exit with 120."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end_unread() -> NoReturn:
    """End quietly where nobody reads on, with the code that a shell gives other tools: 128 + SIGPIPE."""
    _forget_output()
    sys.exit(141)


def _fail(line: str) -> NoReturn:
    """End with one line on standard error and exit code 2: no answer."""
    screen.warn(line)
    sys.exit(2)
