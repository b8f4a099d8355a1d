"""How every command starts and ends: options by click, an error as one line, exit codes 0, 1, 2 and 130."""

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from .errors import Failure, UsageError

# threads that spin while they wait take the cores from other workers: set before PyTorch starts OpenMP
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from rich.console import Console

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def run_command(command: click.Command) -> NoReturn:
    """Run a command and leave the process: 2 for wrong usage, 1 for failure, 130 after Ctrl-C."""
    _prepare_streams()
    try:
        code = command.main(standalone_mode=False) or 0
        sys.stdout.flush()
        sys.exit(code)
    except (click.UsageError, UsageError) as error:
        code, message = 2, error.format_message() if isinstance(error, click.UsageError) else str(error)
    except Failure as error:
        code, message = 1, str(error)
    except (KeyboardInterrupt, click.Abort):
        code, message = 130, "interrupted; what was stored is kept: the same command goes on from there"
    except OSError as error:
        if error.filename is not None or error.errno not in NO_ROOM:
            raise
        code, message = 1, f"the output cannot be written: {error.strerror}; make room, or send it elsewhere"
        _drop_output()
    print(f"error: {message}" if code != 130 else message, file=sys.stderr)
    sys.exit(code)


def _prepare_streams() -> None:
    """So that what a command prints cannot end it: streams that are closed, characters that they cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed, as by >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _drop_output() -> None:
    """What is still buffered goes nowhere: Python would try it again at its end, and complain."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def interpreter() -> str:
    """How the user starts this Python: by name in an active environment, by path otherwise."""
    active = os.environ.get("VIRTUAL_ENV") == sys.prefix or sys.prefix == sys.base_prefix
    return "python" if active else os.path.relpath(sys.executable)


def make_console() -> "Console":
    """Where commands print: plain text, and wide enough for a table where no terminal says how wide."""
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 120)


def command(name: str, help_text: str) -> Callable[[Callable[..., Any]], click.Command]:
    """A click command named as it is typed."""
    return click.command(
        f"python -m search.{name}",
        help=help_text,
        context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
    )
