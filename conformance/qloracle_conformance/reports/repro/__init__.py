"""A script for each failing check, which needs NumPy and the implementation, but not this kit.

It holds the exact input, calls the implementation, and prints what came back and what was expected.
Exit code 1: the fault is still there; 0: it is gone; 2: it could not be tried.
"""

import re
from collections.abc import Hashable

import qloracle
from qloracle_conformance.calling.calls import keywords
from qloracle_conformance.contract.cases import Case, bits
from qloracle_conformance.contract.protocol import FLOAT_TYPES, FUNCTIONS
from qloracle_conformance.engine.runs import CheckRun, Failure
from qloracle_conformance.engine.verdicts import BAD, BROKEN, Judgement
from qloracle_conformance.reports.failures import statement
from qloracle_conformance.reports.repro import comparing, handing, literals, loaders, programs
from qloracle_conformance.reports.repro.literals import wrapped

FAILED = (*BAD, *BROKEN, "XFAIL")
MODULES = (
    "base64", "collections", "contextlib", "faulthandler", "pathlib", "sys", "tempfile", "time",
    "types", "zlib",
)  # fmt: skip
SYNCHRONIZE = (
    '    if hasattr(implementation, "synchronize"):',
    "        implementation.synchronize()",
)
LIBRARIES = ("cupy", "jax", "ml_dtypes", "torch")


def scripts(judgement: Judgement) -> dict[str, str]:
    """The scripts of an implementation, one a fault, by their path in the report's folder.

    Each failing check is told the path of its script.
    """
    texts: dict[str, str] = {}
    paths: dict[Hashable, str] = {}
    for check in judgement.checks:
        text = script(judgement, check) if check.status in FAILED else ""
        if text and check.failure is not None:
            own = f"repro/{_slug(judgement.name)}-{_slug(check.id)}.py"
            check.repro = paths.setdefault(_identity(check, check.failure), own)
            texts.setdefault(check.repro, text)
    return texts


def script(judgement: Judgement, check: CheckRun) -> str:
    """The script of a failing check; "" without an input, or a name to load by."""
    failure, load = check.failure, loaders.load(judgement)
    if failure is None or not load or failure.mismatch.result == "second oracle":
        return ""  # a second opinion that fails is not the implementation's fault
    case, framework = failure.case, judgement.declared.get("arrays") or "numpy"
    handed = handing.functions(framework, judgement.device, failure)
    body = [line for item in case.arrays.items() for line in literals.statements(*item)]
    if FUNCTIONS[check.function].tool:
        body += handed
        body += programs.body(check, failure, framework, judgement.offers)
    else:
        views = [
            v for v in judgement.views if (v.function, v.table) == (check.function, check.table)
        ]
        varied = list(case.arrays)
        if check.rule != "P2":  # the arrays that other calls may replace
            varied = [n for n in FUNCTIONS[case.function].arrays if "codebook" not in n]
        body += [f"ARRAYS = [{', '.join(varied)}]", "", "", *handed]
        body += [*_call(case, varied, framework), "", ""]
        body += comparing.main(check, failure, views[0] if views else None, framework)
    body += ["", "", load + loaders.RUN]
    own = "\n".join(body).partition("\nADAPTER = ")[0]
    return "\n".join([*_docstring(check), *_head(own), *body])


def _slug(text: str) -> str:
    """A file's name for a check or an implementation.

    >>> _slug("S4/quantize_4bit[nf4]/zeros"), _slug("../my/kernels.py")
    ('S4-quantize_4bit-nf4-zeros', 'my-kernels')
    """
    return re.sub(r"[^\w.]+", "-", text.removesuffix(".py")).strip("-.")


def _identity(check: CheckRun, failure: Failure) -> Hashable:
    """Equal for failures of one element of one input, and for calls refused for one reason."""
    case, mismatch = failure.case, failure.mismatch
    if mismatch.result == "call":
        return case.function, check.status, mismatch.got.removeprefix("after: ")
    rule = check.rule if check.rule[0] == "P" else ""
    options, arrays = repr(sorted(case.options.items())), bits(case.arrays.values())
    place = mismatch.result, mismatch.index, mismatch.expected
    return rule, case.function, options, (*case.arrays,), arrays, place


def _docstring(check: CheckRun) -> list[str]:
    """What fails, under which rule, and what the exit codes mean."""
    table = f"[{check.table}]" if check.table else ""
    lines = [*wrapped(f"{check.rule} {check.function}{table}: {statement(check.rule)}"), ""]
    versions = f"qloracle {qloracle.__version__}, specification {qloracle.SPEC_VERSION}"
    lines += [f"Check {check.id}, {versions}."]
    lines += [line for story in check.looks_like for line in wrapped(f"Looks like: {story}")]
    lines += ["Exit code 1: the fault is still there; 0: it is gone; 2: it could not be tried."]
    text = "\n".join(lines).replace("\\", "\\\\").replace('"""', r"\"\"\"")
    return [f'"""{text}', '"""', ""]


def _head(text: str) -> list[str]:
    """The imports and small functions that the script's own text uses."""
    needed = [*literals.UNPACK, ""] if " array(" in text else []
    needed += [literals.HEX, ""] if re.search(r"\bf\(", text) else []
    used = "\n".join([*needed, text])
    lines = [f"import {module}" for module in MODULES if re.search(rf"\b{module}\.\w", used)]
    found = [f"import {name}" for name in LIBRARIES if f" {name}." in f" {used}"]
    lines += ["", *sorted([*found, "import numpy as np"]), ""]
    return [*lines, *needed]


def _call(case: Case, varied: list[str], framework: str) -> list[str]:
    """The function that makes the call as it was made."""
    function, give = FUNCTIONS[case.function], "" if framework == "numpy" else "give"
    passed = {n: n if n in varied or not give else f"{give}({n})" for n in case.arrays}
    positional = [passed[name] for name in function.arrays]
    named = {n: text for n, text in passed.items() if n not in function.arrays}
    named |= {n: _option(n, value, framework) for n, value in keywords(case).items()}
    several = len(function.results) > 1
    lines = [f"def call({', '.join(varied)}):"]
    if case.form == "out":
        lines += wrapped(f"out = {handing.buffers(case, give)}", 4)
        lines += wrapped(_expression(case, positional, named | {"out": "out"}), 4)
        return [*lines, *SYNCHRONIZE, f"    return {'out' if several else '(out,)'}"]
    text = _expression(case, positional, named)
    if case.form == "side_stream":
        names = ", ".join(varied)
        text = f"on_a_side_stream([{names}], lambda {names}: {text})"
    lines += wrapped(f"results = {text}", 4)
    return [*lines, *SYNCHRONIZE, f"    return {'results' if several else '(results,)'}"]


def _expression(case: Case, positional: list[str], named: dict[str, str]) -> str:
    """The call as an expression; an opaque state is decoded at once."""
    decoder = FUNCTIONS[case.function].decoder
    dtype = named.pop("dtype", "") if decoder else ""
    arguments = [*positional, *(f"{name}={text}" for name, text in named.items())]
    call = f"implementation.{case.function}({', '.join(arguments)})"
    return f"implementation.{decoder}({call}, {dtype})" if dtype else call


def _option(name: str, value: object, framework: str) -> str:
    if name != "dtype":
        return literals.string(value) if isinstance(value, str) else repr(value)
    dtype = next(dtype for dtype in FLOAT_TYPES.values() if dtype.type is value)
    module = {"torch": "torch", "jax": "jax.numpy"}.get(framework)
    return f"{module}.{dtype.name}" if module else literals.type_name(dtype)
