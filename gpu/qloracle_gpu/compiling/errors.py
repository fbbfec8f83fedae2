import re


class NoCompiler(Exception):
    """There is no compiler on this machine; the message says what would be one."""


class CompileError(Exception):
    """The compiler refused a text, or crashed: `file` and `line` of the first error, and the log.

    >>> log = 'adam.cu(12): error: identifier "x" is undefined'
    >>> error = CompileError(log)
    >>> error.file, error.line
    ('adam.cu', 12)
    >>> str(error)
    'adam.cu:12: identifier "x" is undefined'
    """

    def __init__(self, log: str):
        self.log = log
        found = re.search(r"^(.*?)\((\d+)\): (?:catastrophic )?error:? ?(.*)$", log, re.MULTILINE)
        self.file = found[1] if found else None
        self.line = int(found[2]) if found else None
        super().__init__(f"{found[1]}:{found[2]}: {found[3]}" if found else log.strip())
