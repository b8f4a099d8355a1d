"""The two ways a command ends early: one line on stderr, exit code 2 (how it was called) or 1 (what happened)."""


def one_line(error: BaseException) -> str:
    """The first line that an error says, or its name where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class UsageError(Exception):
    """The command was called with something it cannot accept. Exit code 2."""


class Failure(Exception):
    """The command was right and could not be carried out. Exit code 1; nothing that was stored is lost."""
