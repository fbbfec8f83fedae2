"""Pagers: arrays that lie with the host or with the device, and read the same from both."""

from qloracle_conformance.families.paging import directed, s12_paging, s12b_books
from qloracle_conformance.families.paging.s12_paging import wrong_read
from qloracle_conformance.families.paging.smaller import smaller
from qloracle_conformance.judging.members import Member

RULES = {"S12": s12_paging, "S12b": s12b_books}
CHECKS = (*s12_paging.CHECKS, *s12b_books.CHECKS)
MEMBERS = (  # of a second run only what was read must be the same: pages may move otherwise
    Member("make_pager", directed.plain, smaller, repeats=1, wrong_form=wrong_read),
)
