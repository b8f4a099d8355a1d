"""The two ways a command ends early: one line on stderr, exit code 2 (how it was called) or 1 (what happened)."""


class UsageError(Exception):
    """The command was called with something it cannot accept. Exit code 2."""


class Failure(Exception):
    """The command was right and could not be carried out. Exit code 1; nothing that was stored is lost."""
