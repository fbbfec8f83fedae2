"""Pagers: arrays that lie with the host or with the device, and read the same from both."""

from collections.abc import Iterator

from qloracle_conformance.contract.cases import Case
from qloracle_conformance.families.paging import directed, s12_paging, s12b_books, smaller
from qloracle_conformance.families.paging.form import wrong_read
from qloracle_conformance.judging.asking import Asker
from qloracle_conformance.judging.members import Member
from qloracle_conformance.judging.views import View

RULES = {"S12": s12_paging, "S12b": s12b_books}
CHECKS = (*s12_paging.CHECKS, *s12b_books.CHECKS)


def plain(ask: Asker, view: View) -> Case:
    """A program that every pager should take."""
    return directed.plain()


def smaller_program(case: Case, index: int) -> Iterator[Case]:
    """Smaller programs; where the wrong element lies does not matter."""
    return smaller.smaller(case)


MEMBERS = (  # of a second run only what was read must be the same: pages may move otherwise
    Member(
        "make_pager", plain, smaller_program, repeats=1, wrong_form=wrong_read,
    ),
)  # fmt: skip
