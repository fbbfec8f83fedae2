"""The errors that end in one line for the user."""


class UsageError(ValueError):
    """A text IMPL, an option, a file or a declaration that cannot mean anything."""


class LoadError(Exception):
    """An implementation that cannot be imported; the text says why, in one line."""


class CannotRun(LoadError):
    """An implementation that this machine cannot run: a device, a driver, a compiler is missing."""
