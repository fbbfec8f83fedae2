"""The kill matrix: every mutant under every check, and what it proves.

A mutant counts as killed only if the rule that it names is among those that fail, and no two may
leave the same fingerprint.  A lawful variant is accepted only if nothing fails and its dialect is
printed.  A check that kills nothing proves nothing: `idle_checks` finds those.
"""

import hashlib
import math
import multiprocessing
import re
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from qloracle_conformance.calling import loading
from qloracle_conformance.calling.callers import Caller, ChildCaller, LocalCaller
from qloracle_conformance.calling.calls import declarations, offered
from qloracle_conformance.contract.cases import bits
from qloracle_conformance.contract.protocol import FUNCTIONS
from qloracle_conformance.engine import Engine
from qloracle_conformance.engine.runs import CheckRun
from qloracle_conformance.mutants import LAWFUL, MUTANTS, here, story
from qloracle_conformance.mutants.parts import Right

WRONG = ("FAIL", "ERROR", "CRASH", "TIMEOUT")
BOUNDED = ("S8", "S9", "S10", "S11", "S11b")  # rules that allow an error, with a derived bound
SLIPS = ("raised TypeError", "raised NameError", "raised AttributeError")


@dataclass(frozen=True)
class Row:
    """What all checks said of one mutant; `use` is `largest_use` of them."""

    name: str
    story: str
    kills: str
    lawful: bool
    adopts: str
    statuses: dict[str, str]
    messages: dict[str, str]
    labels: tuple[str, ...]
    fingerprint: str
    use: float
    first_kill: float = math.nan  # seconds until a check of the rule that it names has failed

    @property
    def failing(self) -> list[str]:
        """Ids of the checks that failed."""
        return [check for check, status in self.statuses.items() if status in WRONG]

    @property
    def rules(self) -> list[str]:
        """The rules that failed, each once."""
        return sorted({check.partition("/")[0] for check in self.failing})

    @property
    def slip(self) -> str:
        """A message that tells of a mistake in the mutant's own code, not of its fault."""
        return next((text for text in self.messages.values() if text.startswith(SLIPS)), "")

    @property
    def as_expected(self) -> bool:
        """Killed by the rule that it names, or accepted with its dialect."""
        if self.lawful:
            named = not self.adopts or any(self.adopts in label for label in self.labels)
            return named and not self.failing
        return self.kills in self.rules if self.kills else bool(self.rules)

    @property
    def verdict(self) -> str:
        """What became of it, in a few words."""
        if self.rules and self.lawful:
            return f"rejected by {', '.join(self.rules)}"
        if self.rules:
            missed = "" if self.as_expected else f", but not by {self.kills}"
            return f"killed by {', '.join(self.rules)}{missed}"
        if not self.lawful:
            return "survives"
        return "accepted" if self.as_expected else f"accepted, but without {self.adopts!r}"


def spec_of(mutant: type | str) -> str:
    """The text IMPL by which a mutant is loaded, in this process or in another one.

    >>> spec_of(MUTANTS[0])
    'qloracle_conformance.mutants.codes.tables:FourDecimals'
    """
    if isinstance(mutant, str):
        return mutant
    return f"{mutant.__module__}:{mutant.__qualname__}"


def load_from(path: str) -> list[str]:
    """Name the mutants in somebody's file: its public classes and namespaces with our functions.

    Optional attributes: `kills` names a rule, `lawful` says that it must pass.  The code is run in
    process, as our own mutants are: a file is to be trusted.
    """
    module = loading.load(path)
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    own = [
        name for name, value in public.items()
        if (isinstance(value, type) and value.__module__ == module.__name__)
        or isinstance(value, SimpleNamespace)
    ]  # fmt: skip
    return [f"{Path(path).resolve()}:{name}" for name in own if offered(public[name])]


def run_matrix(
    mutants: Iterable[type | str] = (*MUTANTS, *LAWFUL),
    *,
    profile: str = "smoke",
    processes: int = 2,
    watch: Callable[[Row], None] = lambda _: None,
    child: bool = False,
) -> list[Row]:
    """Judge every mutant, in processes of their own and in the order given; `watch` sees each row.

    The processes are spawned, not forked: a mutant that remembers its calls starts afresh.
    `child` calls each in a child process more, as a stranger's code is called.
    """
    rows = []
    specs = [spec_of(m) for m in mutants if isinstance(m, str) or here(m)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for row in pool.map(partial(judge, profile=profile, child=child), specs):
            rows.append(row)
            watch(row)
    return rows


def judge(spec: str, profile: str = "smoke", child: bool = False) -> Row:
    """Run the directed checks on one mutant: in this process, or as a stranger's code is called.

    In a child process, some cases ahead, a faulty one is tried by the checks of the rule that it
    names; a lawful one by all, and so is one that breaks P1 to P5, which look at others' calls.
    """
    mutant = loading.load(spec)
    own, kills = own_part(mutant), getattr(mutant, "kills", "")
    by_rule = child and kills.startswith("S") and not getattr(mutant, "lawful", False)
    functions = tuple(offered(own)) if child else tuple(FUNCTIONS)
    with closing(ChildCaller(spec)) if child else nullcontext(LocalCaller(own)) as caller:
        return _judge(spec, mutant, caller, profile, functions, f"{kills}/" if by_rule else "")


def _judge(
    spec: str, mutant: Any, caller: Caller, profile: str, functions: tuple[str, ...], only: str
) -> Row:
    start, kills, first = time.perf_counter(), getattr(mutant, "kills", ""), math.nan
    engine = Engine(
        caller, profile=profile, searching=False, reducing=False, functions=functions,
        only=lambda check: check.startswith(only),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a mutant warns of is nobody's news
        views, runs = engine.probe(), list[CheckRun]()
        for run in engine.run():
            runs.append(run)
            if math.isnan(first) and run.status in WRONG and kills in ("", run.rule):
                first = time.perf_counter() - start
    return Row(
        name=spec.rpartition(":")[2],
        story=story(mutant),
        kills=kills,
        lawful=bool(getattr(mutant, "lawful", False)),
        adopts=getattr(mutant, "adopts", ""),
        statuses={run.id: run.status for run in runs},
        messages={run.id: run.message for run in runs if run.message},
        labels=tuple(f"{view.name}: {view.label}" for view in views if view.label),
        fingerprint=fingerprint(runs),
        use=largest_use(runs),
        first_kill=first,
    )


def own_part(mutant: object) -> object:
    """A mutant without the functions that it has from `Right`: those pass in every other run.

    >>> list(offered(own_part(MUTANTS[4])))  # only a decoder, with a table of its own
    ['dequantize_4bit']
    """
    right = {name for name in offered(Right) if getattr(mutant, name, None) is getattr(Right, name)}
    own = [name for name in offered(mutant) if name not in right]
    own += [FUNCTIONS[name].decoder for name in own if FUNCTIONS[name].decoder]
    own += [name for name in ("save_paged", "load_paged") if hasattr(mutant, name)]
    return SimpleNamespace(**{name: getattr(mutant, name) for name in own}, **declarations(mutant))


def fingerprint(runs: Iterable[CheckRun]) -> str:
    """Digest what failed and how: the checks, their messages and the results that came back."""
    state = hashlib.blake2b(digest_size=8)
    for run in sorted((run for run in runs if run.status in WRONG), key=lambda run: run.id):
        state.update(f"{run.id}\n{run.message}\n".encode())
        for kind, shape, content in bits(run.failure.values if run.failure else ()):
            state.update(f"{kind}{shape}".encode() + content)
    return state.hexdigest()


def largest_use(runs: Iterable[CheckRun]) -> float:
    """Observed error over bound at its largest; 0 where no rule that has a bound was met.

    Infinite if only such results were wrong as must be exact, or were no numbers.
    """
    bounded = [run for run in runs if run.rule in BOUNDED]
    use = max((run.use for run in bounded), default=0.0)
    return math.inf if use <= 1 and any(run.status in WRONG for run in bounded) else use


def kind_of(check: str) -> str:
    """A check without its table: rule, function and layer; a P rule holds for all functions.

    >>> kind_of("S5/quantize_4bit[nf4]/full"), kind_of("P1/absmax"), kind_of("P5/absmax/offset")
    ('S5/quantize_4bit/full', 'P1', 'P5/offset')
    """
    if check.startswith("P"):
        return re.sub(r"/[^/]+", "", check, count=1)
    return re.sub(r"\[\w+\]", "", check)


def idle_checks(rows: Iterable[Row]) -> list[str]:
    """List the kinds of check that kill no mutant; a kit should have none."""
    faulty = [row for row in rows if not row.lawful]
    every = {kind_of(check) for row in faulty for check in row.statuses}
    return sorted(every - {kind_of(check) for row in faulty for check in row.failing})


def twins(rows: Iterable[Row]) -> list[list[str]]:
    """List the faulty mutants that the checks cannot tell apart."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        if not row.lawful:
            groups.setdefault(row.fingerprint, []).append(row.name)
    return [names for names in groups.values() if len(names) > 1]


def problems(rows: Iterable[Row], *, whole: bool = True) -> list[str]:
    """Say which mutants surprise, and where the matrix of a whole catalogue proves too little."""
    rows = list(rows)
    found = [f"{row.name}: {row.verdict}" for row in rows if not row.as_expected]
    if whole:
        found += [f"{row.name} slips: {row.slip}" for row in rows if row.slip]
        found += [f"{' and '.join(names)} leave the same fingerprint" for names in twins(rows)]
        found += [f"{check} kills nothing" for check in idle_checks(rows)]
    return found
