"""The part of a repro script that loads the implementation, as the kit loaded it."""

import ast
import textwrap
from importlib.util import find_spec
from pathlib import Path

from qloracle_conformance import adapters
from qloracle_conformance.calling.loading import parse
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.engine.verdicts import Judgement
from qloracle_conformance.reports.repro.literals import string

KIT = "qloracle_conformance."  # a script must not import the kit's own adapters

FILE = """\
def load():
    module = types.ModuleType({name})
    module.__file__ = {path}
    sys.modules[module.__name__] = module
{read}    exec(compile({text}, module.__file__, "exec"), vars(module))
    return module{member}
"""

# The text as it is now, and no older bytecode.
READ = """\
    with open(module.__file__, "rb") as file:
        text = file.read()
"""

MODULE = """\
def load():
    {search}import {module}

    return {module}{member}
"""

ADAPTER = """

# The adapter through which {impl} was called.
ADAPTER = {source}
"""

RUN = """

if __name__ == "__main__":
    try:
        implementation = load()
    except Exception as error:
        print(f"could not be loaded: {type(error).__name__}: {error}")
        sys.exit(2)
    sys.exit(main())
"""


def load(judgement: Judgement) -> str:
    """The function `load` of a script; "" where no text names the implementation."""
    try:
        place = parse(judgement.name)
    except UsageError:
        return ""
    adapter = adapters.find(judgement.name)
    member = f".{place.member}" if place.member else ""
    if adapter is not None and place.where.startswith(KIT):
        spec = find_spec(place.where)
        assert spec is not None
        assert spec.origin is not None
        name = string(f"repro_{judgement.name}")
        source = quoted(Path(spec.origin).read_text(encoding="utf-8"))
        text = FILE.format(name=name, path=name, read="", text="ADAPTER", member=member)
        return text + ADAPTER.format(impl=judgement.name, source=source)
    if place.kind == "file":
        name, path = string(f"repro_{Path(place.where).stem}"), string(place.where)
        return FILE.format(name=name, path=path, read=READ, text="text", member=member)
    # Last on the path, and only where it may be needed: the folder in which the kit ran.
    search = "" if adapter else f"sys.path.append({string(str(Path.cwd()))})\n    "
    return MODULE.format(search=search, module=place.where, member=member)


def quoted(source: str) -> str:
    r"""Python text whose value is `source`: as it stands where it can stand so.

    >>> print(quoted("a = 'b'\n"))
    r'''
    a = 'b'
    '''.lstrip()
    """
    text = f"r'''\n{source}'''"
    try:
        if ast.literal_eval(text) == f"\n{source}":
            return f"{text}.lstrip()"
    except SyntaxError:
        pass
    return "(\n" + textwrap.indent("\n".join(map(repr, source.splitlines(True))), "    ") + "\n)"
