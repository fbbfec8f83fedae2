"""Gates: every planted fault is killed by the rule it names, every lawful variant is accepted."""

import csv
import io
import warnings

import pytest

from qloracle_conformance.commands.mutants import line, table
from qloracle_conformance.contract import protocol
from qloracle_conformance.mutants import LAWFUL, MUTANTS, catalogue, paging, story
from qloracle_conformance.mutants.lora import lawful as lora_lawful
from qloracle_conformance.mutants.matrix import (
    idle_checks,
    judge,
    kind_of,
    load_from,
    problems,
    run_matrix,
    spec_of,
    twins,
)
from qloracle_conformance.mutants.products import lawful as products_lawful

PRODUCTS = (("S9", products_lawful), ("S10", lora_lawful))
LINEAR = "weights", "integers", "one_hot", "swamped", "shapes", "moment"
ADAPTER = "integers", "rounding", "shapes"
LAYERS = dict.fromkeys(protocol.LINEAR, LINEAR) | {
    function: (*ADAPTER, *["weights"] * ("qlora" in function)) for function in protocol.LORA
}


def named(home):
    """The names of the variants of one module."""
    return {mutant.__name__ for mutant in catalogue(home)}


def test_there_are_enough_and_each_has_a_story_and_a_rule():
    assert len(MUTANTS) >= 30
    assert len(LAWFUL) >= 8
    assert all(story(mutant) and mutant.kills for mutant in MUTANTS)
    assert all(story(variant) for variant in LAWFUL)
    assert len({mutant.__name__ for mutant in (*MUTANTS, *LAWFUL)}) == len(MUTANTS) + len(LAWFUL)


def test_there_are_pagers_of_every_kind():
    pagers = [mutant for module in paging.MODULES for mutant in catalogue(module)]
    assert sum(mutant.kills == "S12" for mutant in pagers) >= 20
    assert sum(mutant.kills == "S12b" for mutant in pagers) >= 20
    assert sum(mutant.lawful for mutant in pagers) >= 12


@pytest.fixture(scope="module")
def rows():
    return run_matrix()


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestWholeMatrix:
    def test_every_mutant_is_killed_by_its_rule_and_no_lawful_variant_is_rejected(self, rows):
        assert [row.name for row in rows if not row.as_expected] == []

    def test_none_dies_of_a_mistake_in_its_own_code(self, rows):
        assert [row.name for row in rows if row.slip] == []

    def test_every_fingerprint_is_its_own(self, rows):
        assert twins(rows) == []

    def test_every_check_kills_something(self, rows):
        assert idle_checks(rows) == []

    @pytest.mark.parametrize(("rule", "home"), PRODUCTS, ids=["S9", "S10"])
    def test_errors_stand_over_their_bounds_where_they_should(self, rows, rule, home):
        """The mutants exceed the bound of a product, the lawful variants come near or reach it."""
        print("\n".join(line(row) for row in rows if row.kills == rule))
        faulty = [row for row in rows if row.kills == rule]
        lawful = [row for row in rows if row.lawful and row.name in named(home)]
        assert len(faulty) >= 14
        assert len(lawful) >= 4
        assert [row.name for row in faulty if not row.use > 1] == []
        assert [row.name for row in lawful if not 0 < row.use <= 1] == []

    @pytest.mark.parametrize(("function", "layers"), LAYERS.items())
    def test_every_check_of_a_product_kills_something(self, rows, function, layers):
        faulty = [row for row in rows if not row.lawful]
        killing = {kind_of(c) if c[0] == "S" else c for row in faulty for c in row.failing}
        rule = "S9" if function in protocol.LINEAR else "S10"
        due = {f"{rule}/{function}/{layer}" for layer in layers}
        assert due | {f"P{i}/{function}" for i in (1, 2, 3, 4)} <= killing

    def test_the_table_holds_checks_by_mutants(self, rows):
        lines = list(csv.reader(io.StringIO(table(rows))))
        assert len(lines[0]) == 1 + len(MUTANTS) + len(LAWFUL)
        assert "S5/quantize_4bit[nf4]/full" in {line[0] for line in lines}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_mutant_meets_the_same_end_in_a_child_process():
    """The matrix runs in process; a stranger's code runs in a child, some calls ahead."""
    rows = run_matrix(child=True)
    assert [f"{row.name}: {row.verdict}" for row in rows if not row.as_expected] == []


def find(name):
    return next(mutant for mutant in (*MUTANTS, *LAWFUL) if mutant.__name__ == name)


@pytest.mark.parametrize("name", ["RowsOfVectors", "RowsOf24", "LongRows"])
def test_the_avx512_fault_and_its_twins_are_found(name):
    """The same fault at other block sizes and row lengths: nothing is tuned to the known case."""
    row = judge(spec_of(find(name)))
    assert row.rules == ["S3"]


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("StaleAfterEviction", ["S12"]),
        ("SavesOldPages", ["S12"]),
        ("CapacityPlusAPage", ["S12b"]),
        ("ResumesUnpaged", ["S12b"]),
        ("FirstInFirstOut", []),
        ("WholePagesOfTheSystem", []),
        ("CapacityIgnored", []),
    ],
)
def test_bytes_and_books_of_a_pager_are_told_apart(name, rules):
    assert judge(spec_of(find(name))).rules == rules


def test_a_lawful_variant_is_accepted_with_its_dialect_named():
    row = judge(spec_of(find("FullAndPartial")))
    assert row.verdict == "accepted"
    assert any("full: reciprocal, partial: divide" in label for label in row.labels)


def test_a_mutant_that_is_no_fault_is_a_problem(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import qloracle as q\n"
        "class Harmless:\n    'Nothing is wrong.'\n    kills = 'S7'\n"
        "    dequantize_absmax = staticmethod(q.dequantize_absmax)\n"
        "class Doubled:\n    'All is twice too large.'\n    kills = 'S8'\n"
        "    dequantize_absmax = staticmethod(lambda *a, **k: 2 * q.dequantize_absmax(*a, **k))\n"
    )
    specs = load_from(str(path))
    assert [spec.rpartition(":")[2] for spec in specs] == ["Harmless", "Doubled"]
    found = problems(run_matrix(specs), whole=False)
    assert len(found) == 1
    assert found[0].startswith("Harmless")


def test_a_mutant_that_trips_over_itself_is_a_problem(tmp_path):
    """It dies of a mistake in its own code, and its fault was never tried."""
    path = tmp_path / "mine.py"
    path.write_text("class Trips:\n    kills = 'S8'\n    quantize_absmax = lambda *a, **k: a + 1\n")
    rows = [judge(spec) for spec in load_from(str(path))]
    assert rows[0].as_expected
    assert "Trips slips: raised TypeError" in "\n".join(problems(rows))


def test_what_a_mutant_warns_of_reaches_nobody(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "import warnings\nimport qloracle\nclass Warns:\n    kills = 'S8'\n"
        "    def dequantize_absmax(codes, nested_absmax, offset, **options):\n"
        "        warnings.warn('overflow', RuntimeWarning)\n"
        "        return qloracle.dequantize_absmax(codes, nested_absmax, 0 * offset, **options)\n"
    )
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        (row,) = [judge(spec) for spec in load_from(str(path))]
    assert row.as_expected
    assert heard == []
