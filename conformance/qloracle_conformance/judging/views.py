"""A view: one function under one table, its dialect, and what the probe found undeclared."""

from dataclasses import dataclass, field

import qloracle
from qloracle_conformance.contract import dialects
from qloracle_conformance.contract.dialects import BY_NAME, Dialect
from qloracle_conformance.judging import expected as oracle
from qloracle_conformance.judging.expected import Coder, Float32

QUANT_TYPES = ("nf4", "fp4")
MAPS = ("signed", "unsigned")


def specified_levels(table: str) -> Float32:
    """S1's levels: of a 4-bit type by name, of the unsigned map, or of the signed one."""
    if table in QUANT_TYPES:
        return qloracle.codebook(table)
    return qloracle.dynamic_codebook(signed=table != "unsigned")


@dataclass
class Finding:
    """A field that is not as specified, or a declaration that the probe contradicts."""

    field: str
    expected: str
    found: str
    evidence: str = ""
    declared: str = ""

    @property
    def declare(self) -> str:
        """The line that would declare it; '' if no named value fits."""
        if self.found not in BY_NAME[self.field].values:
            return ""
        return f'dialect = {{"{self.field}": "{self.found}"}}'


@dataclass
class View:
    """One function under one table: the dialect it is judged under, and its own levels."""

    function: str
    table: str
    dialect: Dialect
    levels: Float32
    findings: list[Finding] = field(default_factory=list)
    unsupported: str = ""

    @property
    def quant_type(self) -> str:
        """The 4-bit type; '' for the 8-bit functions."""
        return self.table if self.table in QUANT_TYPES else ""

    @property
    def name(self) -> str:
        """How the view is called in reports."""
        return f"{self.function}[{self.table}]" if self.table else self.function

    @property
    def coder(self) -> Coder:
        """Levels and thresholds that codes are judged by."""
        return oracle.coder(self.levels, self.dialect, self.quant_type)

    @property
    def label(self) -> str:
        """The dialect as it is printed in a verdict."""
        return dialects.label(self.dialect, self.function, self.quant_type)
