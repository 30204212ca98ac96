"""`diver`: single steps on a set of your own, without the workflow."""

import errno
from collections.abc import Callable
from typing import Any

import typer

from diver.cli.common import UserError
from diver.cli.comparison import compare
from diver.cli.files import convert, export, forms, import_, info, show
from diver.cli.native import synthesize
from diver.cli.stages import distill, experts, judge, merge, methods, presets, recover
from diver.cli.students import evaluate, protocols, teach
from diver.cli.studies import check, cost, report, schema

app = typer.Typer(
    no_args_is_help=True,
    help=__doc__,
    context_settings={"max_content_width": 110},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# In the order in which the help shows them.
COMMANDS: list[Callable[..., None]] = [
    *(info, show, recover, evaluate, compare, distill, synthesize, convert, import_, export, merge),
    *(methods, presets, protocols, forms, teach, experts, judge, check, cost, report, schema),
]
for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)

# What the parser raises for a command line that is not one; typer does not export the class itself.
_USAGE: type[Exception] = typer.BadParameter.__mro__[2]


def _usage(error: Any) -> str:
    """The parser's complaint in one line, with where to look; the help itself if nothing was asked for."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return str(error.format_message())
    path = error.ctx.command_path if getattr(error, "ctx", None) else "diver"
    return f"{path}: {' '.join(error.format_message().split())} See `{path} --help`."


def _mendable(error: BaseException) -> str | None:
    """The one line to show for an error that the user can mend: what the project itself refuses, and files."""
    if isinstance(error, UserError) or (isinstance(error, ValueError) and type(error).__module__.startswith("diver.")):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return str(error.strerror)
    return None


def main() -> None:
    """Entry point. Exit code 0: done; 2: what the user can mend, in one line on stderr; 1: anything else."""
    from diver.workers import keep_freed_memory

    keep_freed_memory()
    try:
        code = app(standalone_mode=False)
    except _USAGE as error:
        typer.echo(_usage(error), err=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        line = _mendable(error)
        if line is None:
            raise
        typer.echo(f"diver: {line}", err=True)
        raise SystemExit(2) from None
    raise SystemExit(code or 0)
