"""The part of a repro script that loads the implementation, as the kit loaded it."""

import ast
import textwrap
from importlib.util import find_spec
from pathlib import Path

from qloracle_conformance import adapters
from qloracle_conformance.calling.loading import Place, parse
from qloracle_conformance.contract.errors import UsageError
from qloracle_conformance.engine.verdicts import Judgement
from qloracle_conformance.reports.repro.literals import string

KIT = "qloracle_conformance."  # a script must not import the kit's own adapters

FILE = """\
def load():
    module = types.ModuleType({name})
    module.__file__ = {path}
    sys.modules[module.__name__] = module
    with open(module.__file__, "rb") as file:  # the text as it is now, no older bytecode
        exec(compile(file.read(), module.__file__, "exec"), vars(module))
    return module{member}
"""

MODULE = """\
def load():
    {search}import {module}

    return {module}{member}
"""

ADAPTER = """\
def load():
    module = types.ModuleType({name})
    sys.modules[module.__name__] = module
    exec(compile(ADAPTER, module.__name__, "exec"), vars(module))
    return module{member}


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
    if adapter is not None and place.where.startswith(KIT):
        return _adapter(judgement, place)
    member = f".{place.member}" if place.member else ""
    if place.kind == "file":
        name = f"repro_{Path(place.where).stem}"
        return FILE.format(name=string(name), path=string(place.where), member=member)
    # Last on the path, and only where it may be needed: the folder in which the kit ran.
    search = "" if adapter else f"sys.path.append({string(str(Path.cwd()))})\n    "
    return MODULE.format(search=search, module=place.where, member=member)


def _adapter(judgement: Judgement, place: Place) -> str:
    """One of the kit's adapters, which import nothing of the kit: the script carries its text."""
    spec = find_spec(place.where)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    name = string(f"repro_{judgement.name}")
    member = f".{place.member}" if place.member else ""
    return ADAPTER.format(name=name, impl=judgement.name, source=quoted(source), member=member)


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
