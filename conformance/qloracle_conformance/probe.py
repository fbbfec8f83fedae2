"""Find an implementation's dialect from its outputs alone.

Thresholds are bisected at absmax = 1, where divide and reciprocal are exact; normalisation is read
at full-mantissa scales where the two fall on different sides.  What is found is adopted if it is a
rounding field, and a finding if it is an undeclared format field.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

import qloracle
from qloracle_conformance import dialects, oracle
from qloracle_conformance.cases import Answer, Case
from qloracle_conformance.dialects import BY_NAME, Dialect
from qloracle_conformance.inputs import values
from qloracle_conformance.oracle import Coder, Float32
from qloracle_conformance.scope import Scope

Call = Callable[[Case], Answer]

QUANT_TYPES = ("nf4", "fp4", "int4", "notes")
MAPS = ("signed", "unsigned")


@dataclass
class Finding:
    """A field whose value is not the specification's, or a declaration that the probe contradicts."""

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
    """What is known of one function and table: the dialect it is judged under, and how it came by."""

    function: str
    table: str
    dialect: Dialect
    levels: Float32
    findings: list[Finding] = field(default_factory=list)
    unsupported: str = ""
    cuts: Float32 | None = None

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
        """Levels and cuts that codes are judged by."""
        return oracle.coder(self.levels, self.dialect, self.quant_type)

    @property
    def label(self) -> str:
        """The dialect as it is printed in a verdict."""
        return dialects.label(self.dialect, self.function, self.quant_type)


class Prober:
    """Runs the probes of one implementation."""

    def __init__(
        self, call: Call, offers: Mapping[str, Any], scope: Scope, declared: Mapping[str, Any]
    ):
        self._call, self._offers = call, offers
        self._scope, self._declared = scope, declared
        self.calls = 0

    def views(self) -> list[View]:
        """Probe every offered function of L0 and L1, decoders first: they show the tables."""
        found: list[View] = []
        tables = {
            "dequantize_4bit": QUANT_TYPES,
            "quantize_4bit": QUANT_TYPES,
            "dequantize_blockwise": MAPS,
            "quantize_blockwise": MAPS,
            "dequantize_absmax": ("",),
            "quantize_absmax": ("",),
        }
        for function, names in tables.items():
            if function in self._offers:
                found += [self._view(function, table, found) for table in names]
        return found

    def _view(self, function: str, table: str, before: list[View]) -> View:
        quant_type = table if table in QUANT_TYPES else ""
        dialect = dialects.specification(function, quant_type)
        declared = dialects.declared_for(self._declared, function, quant_type)
        view = View(function, table, dialect | declared, self._levels(function, table, before))
        probe = getattr(self, f"_{function}")
        reason = self._trial(view)
        if reason:
            view.unsupported = reason
            return view
        for name, found in probe(view).items():
            self._settle(view, name, declared.get(name), *found)
        return view

    @staticmethod
    def _levels(function: str, table: str, before: list[View]) -> Float32:
        """The table to start from: what the decoder of the same table showed, or S1's."""
        twin = function.replace("quantize", "dequantize", 1) if function[0] == "q" else ""
        shown = [v for v in before if v.function == twin and v.table == table and not v.unsupported]
        if shown:
            return shown[0].levels
        if table in QUANT_TYPES:
            return qloracle.codebook(table)
        return qloracle.dynamic_codebook(signed=table != "unsigned")

    def _trial(self, view: View) -> str:
        """Why the function cannot be judged for this table at all; '' if it can."""
        case = _friendly(view, self._scope)
        outside = self._scope.outside(case)
        if outside:
            return outside
        answer = self._ask(case)
        if answer.status == "UNSUPPORTED" or (view.quant_type not in ("", "nf4") and _refused(answer)):
            return answer.message or "not supported"
        return ""

    def _settle(self, view: View, name: str, declared: str | None, found: str, why: str) -> None:
        """Adopt what was found; note it where it should have been declared, or was otherwise."""
        expected = declared or BY_NAME[name].values[0]
        if found != expected and (declared is not None or BY_NAME[name].kind == "format"):
            view.findings.append(Finding(name, expected, found, why, declared or ""))
        elif found not in BY_NAME[name].values:  # a rounding that has no name
            view.findings.append(Finding(name, expected, found, why))
        if found in BY_NAME[name].values:
            view.dialect[name] = found

    def _ask(self, case: Case) -> Answer:
        self.calls += 1
        return self._call(case)

    def _values(self, case: Case) -> tuple[NDArray[Any], ...] | None:
        answer = self._ask(case)
        return answer.values if answer.status == "OK" else None

    # ---- decoding ------------------------------------------------------------------------------

    def _dequantize_4bit(self, view: View) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        shown = self._show_levels(view)
        if shown is not None:
            due = oracle.round_to(view.levels, _dtype(self._scope, view.function))
            names = {k: oracle.round_to(t, _dtype(self._scope, view.function)) for k, t in _tables(view)}
            same = [name for name, table in names.items() if np.array_equal(table, shown)]
            if not np.array_equal(due, shown):
                view.levels = shown
                wrong = np.flatnonzero(due != shown)
                why = f"level {wrong[0]} is {shown[wrong[0]]!s}, not {due[wrong[0]]!s}"
                found["codebook"] = (same[0] if same else "none of the named", why)
        found |= self._nibble_of_decode(view)
        found |= self._layout_of_decode(view)
        return found | self._decode_recipe(view) | self._flushed_output(view)

    def _show_levels(self, view: View) -> Float32 | None:
        """Decode each code at absmax 1: the implementation's own table."""
        codes = np.arange(view.levels.size)
        packed = np.zeros(32, np.uint8)
        packed[: codes.size] = codes * 17  # the same code in both nibbles: the order cannot matter
        got = self._decode_4bit(view, packed, np.ones(1, np.float32), (64,))
        if got is None:
            return None
        return got.astype(np.float32)[: 2 * codes.size : 2]

    def _nibble_of_decode(self, view: View) -> dict[str, tuple[str, str]]:
        top = int(np.argmax(view.levels))
        packed = np.full(32, top, np.uint8)  # 0x0F in NF4
        got = self._decode_4bit(view, packed, np.ones(1, np.float32), (64,))
        if got is None or got[0] == got[1]:
            return {}
        order = "high_first" if got[1] == got.max() else "low_first"
        return {"nibble_order": (order, f"byte 0x{top:02x} decodes to {got[0]}, {got[1]}")}

    def _layout_of_decode(self, view: View) -> dict[str, tuple[str, str]]:
        """Rows of 40 in blocks of 64: two scales if blocks run on, three if rows restart them."""
        code = int(np.argmax(view.levels))
        packed = np.full(60, code * 17, np.uint8)
        for layout in ("flat", "per_row"):
            blocks = oracle.blocks_of((3, 40), 64, layout)
            scale = 2.0 ** np.arange(blocks.sizes.size, dtype=np.float32)
            got = self._decode_4bit(view, packed, scale.astype(np.float32), (3, 40), blocksize=64)
            if got is not None and np.array_equal(got, scale[blocks.index] * view.levels[code]):
                return {"layout": (layout, f"rows of 40 in blocks of 64 take {scale.size} scales")}
        return {}

    def _decode_recipe(self, view: View) -> dict[str, tuple[str, str]]:
        """16-bit output tells whether the product was made in float32 or in the output type."""
        rng = np.random.default_rng(7)
        dtype = _dtype(self._scope, view.function, prefer=("bfloat16", "float16"))
        codes = rng.integers(0, view.levels.size, 64 * 16).astype(np.uint8)
        scale = values.full_mantissa(rng, 16, -3, 3)
        got = self._decode_codes(view, codes, scale, (16, 64), dtype)
        if got is None or dtype == "float32":
            return {}
        for recipe in ("separate", "output_type"):
            due = oracle.product(view.levels[codes], np.repeat(scale, 64), dtype, {"decode": recipe})
            if np.array_equal(due.astype("f4"), got.astype("f4")):
                return {"decode": (recipe, f"{dtype} products agree")}
        return {}

    def _flushed_output(self, view: View) -> dict[str, tuple[str, str]]:
        """Subnormal products, in float32 and after the conversion to bfloat16."""
        kept = {dtype: self._keeps_subnormals(view, dtype) for dtype in ("float32", "bfloat16")}
        if kept["float32"] is None:
            return {}
        how = "kept" if kept["float32"] else "flushed"
        if kept["float32"] and kept["bfloat16"] is False:
            how = "flushed_bfloat16"
        return {"subnormal_output": (how, "2**-126 times a level")}

    def _keeps_subnormals(self, view: View, dtype: str) -> bool | None:
        """Whether a product of 2**-126 and a level below 1 comes back non-zero; None if unknown."""
        level = view.levels[(view.levels > 0.2) & (view.levels < 0.9)][:1]
        if not level.size:
            return None
        codes = np.full(64, int(np.flatnonzero(view.levels == level)[0]), np.uint8)
        scale = np.full(1, 2.0**-126, np.float32)
        got = self._decode_codes(view, codes, scale, (64,), dtype)
        return None if got is None else bool(got.astype(np.float32).any())

    def _decode_4bit(
        self, view: View, packed: NDArray[np.uint8], scale: Float32, shape: tuple[int, ...],
        dtype: str = "", blocksize: int = 0,
    ) -> NDArray[Any] | None:  # fmt: skip
        options = {
            "shape": list(shape), "blocksize": blocksize or _blocksize(self._scope, view.function),
            "quant_type": view.table, "dtype": dtype or _dtype(self._scope, view.function),
        }  # fmt: skip
        n = int(np.prod(shape))
        blocks = oracle.block_total(shape, options["blocksize"], view.dialect["layout"])
        scale = np.resize(scale, max(blocks, scale.size)).astype(np.float32)
        case = Case("dequantize_4bit", {"packed": packed, "absmax": scale}, options)
        got = None if self._scope.outside(case) else self._values(case)
        return None if got is None or got[0].size != n else got[0].reshape(shape)

    def _decode_codes(
        self, view: View, codes: NDArray[np.uint8], scale: Float32, shape: tuple[int, ...], dtype: str
    ) -> NDArray[Any] | None:  # fmt: skip
        """Decode codes whose blocks of 64 are whole rows, through either decoder."""
        if view.function == "dequantize_4bit":
            packed = oracle.pack(codes, view.dialect["nibble_order"])
            got = self._decode_4bit(view, packed, scale, shape, dtype, 64)
        else:
            options = {"shape": list(shape), "blocksize": 64, "dtype": dtype}
            arrays = {"codes": codes, "absmax": scale, "codebook": view.levels}
            case = Case("dequantize_blockwise", arrays, options)
            result = None if self._scope.outside(case) else self._values(case)
            got = None if result is None or result[0].size != codes.size else result[0]
        return None if got is None else got.reshape(-1)

    def _dequantize_blockwise(self, view: View) -> dict[str, tuple[str, str]]:
        return self._decode_recipe(view) | self._flushed_output(view)

    def _dequantize_absmax(self, view: View) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        codes = np.arange(256, dtype=np.uint8)
        shown = self._decode_nested(codes, np.ones(1, np.float32), 0.0)
        if shown is not None and not np.array_equal(shown, view.levels):
            named = "baseline" if np.array_equal(shown, oracle.baseline_map()) else "none of the named"
            wrong = np.flatnonzero(shown != view.levels)
            found["map_8bit"] = (
                named, f"{wrong.size} of 256 levels differ, the first at code {wrong[0]}"
            )  # fmt: skip
            view.levels = shown
        rng = np.random.default_rng(11)
        mixed = rng.integers(0, 256, 1024).astype(np.uint8)
        scale = values.full_mantissa(rng, 4, -2, 2)
        got = self._decode_nested(mixed, scale, 0.7123)
        levels = view.levels[mixed]
        for recipe in ("separate", "fma"):
            due = oracle.nested_value(levels, np.repeat(scale, 256), 0.7123, {"decode": recipe})
            if got is not None and np.array_equal(due, got):
                found["decode"] = (recipe, "1,024 nested values agree")
                break
        return found

    def _decode_nested(
        self, codes: NDArray[np.uint8], scale: Float32, offset: float
    ) -> Float32 | None:
        arrays = {"codes": codes, "nested_absmax": scale, "offset": np.array(offset, np.float32)}
        got = self._values(Case("dequantize_absmax", arrays, {"blocksize": 256}))
        return None if got is None or got[0].size != codes.size else got[0].reshape(-1)

    # ---- quantizing ----------------------------------------------------------------------------

    def _quantize_4bit(self, view: View) -> dict[str, tuple[str, str]]:
        found = self._nibble_of_encode(view)
        if found:
            view.dialect["nibble_order"] = found["nibble_order"][0]
        return found | self._quantize_blockwise(view)

    def _nibble_of_encode(self, view: View) -> dict[str, tuple[str, str]]:
        x = np.tile(np.array([1, -1], np.float32), 32)
        got = self._values(self._encode_case(view, x))
        coder = view.coder
        if got is None or not got[0].size:
            return {}
        byte = int(got[0].reshape(-1)[0])
        ranks = [int(r) for r in coder.ranks_of(np.array([byte >> 4, byte & 15]))]
        if ranks[0] == ranks[1]:
            return {}
        order = "high_first" if ranks[0] > ranks[1] else "low_first"
        return {"nibble_order": (order, f"[1, -1, ...] packs to 0x{byte:02x}")}

    def _quantize_blockwise(self, view: View) -> dict[str, tuple[str, str]]:
        found = self._layout_of_encode(view)
        view.dialect.update({name: entry[0] for name, entry in found.items()})
        found |= self._absmax_type(view) | self._zero_block(view)
        found |= self._thresholds(view)
        for name, (value, _) in found.items():
            if value in BY_NAME[name].values:
                view.dialect[name] = value
        found |= self._subnormals(view)
        if found.get("thresholds", ("midpoint",))[0] in BY_NAME["thresholds"].values:
            found |= self._normalisation(view)
        return found

    def _encode_case(self, view: View, x: NDArray[Any], blocksize: int = 0) -> Case:
        options: dict[str, Any] = {
            "blocksize": blocksize or _blocksize(self._scope, view.function)
        }
        x = x.astype(oracle.FLOAT_TYPES[_dtype(self._scope, view.function, (x.dtype.name,))])
        if view.quant_type:
            options["quant_type"] = view.quant_type
            return Case("quantize_4bit", {"x": x}, options)
        return Case("quantize_blockwise", {"x": x, "codebook": view.levels}, options)

    def _encode(
        self, view: View, x: NDArray[Any], blocksize: int = 0
    ) -> tuple[NDArray[np.int64], Float32] | None:
        """Encode and return (ranks of all elements, absmax)."""
        case = self._encode_case(view, x, blocksize)
        got = None if self._scope.outside(case) else self._values(case)
        if got is None:
            return None
        codes = got[0].reshape(-1)
        if view.quant_type:
            codes = oracle.unpack(codes.astype(np.uint8), x.size, view.dialect["nibble_order"])
        if codes.size != x.size:
            return None
        return view.coder.ranks_of(codes), got[1].reshape(-1).astype(np.float32)

    def _layout_of_encode(self, view: View) -> dict[str, tuple[str, str]]:
        x = np.repeat(2.0 ** np.arange(3, dtype=np.float32), 40).reshape(3, 40).astype(np.float32)
        case = self._encode_case(view, x, 64)
        got = None if self._scope.outside(case) else self._values(case)
        if got is None or got[1].size not in (2, 3):
            return {}
        layout = "flat" if got[1].size == 2 else "per_row"
        return {"layout": (layout, f"rows of 40 in blocks of 64 give {got[1].size} absmax")}

    def _absmax_type(self, view: View) -> dict[str, tuple[str, str]]:
        size = _blocksize(self._scope, view.function)
        scale = values.full_mantissa(np.random.default_rng(3), 16, -3, 3)
        got = self._encode(view, np.repeat(scale, size).reshape(16, size))
        if got is None or got[1].size != 16:
            return {}
        same = [t for t in BY_NAME["absmax_type"].values if np.array_equal(got[1], oracle.round_to(scale, t))]
        return {"absmax_type": (same[0], f"{scale[0]} is stored as {got[1][0]}")} if same else {}

    def _zero_block(self, view: View) -> dict[str, tuple[str, str]]:
        got = self._encode(view, np.zeros(_blocksize(self._scope, view.function), np.float32))
        if got is None:
            return {}
        return self._name_zero(view, int(got[0][0]), "block")

    @staticmethod
    def _name_zero(view: View, rank: int, what: str) -> dict[str, tuple[str, str]]:
        """Name the code that zeros were given."""
        coder = view.coder
        named = {int(coder.ranks(np.zeros(1, np.float32))[0]): "zero"}
        named |= {r: n for r, n in ((0, "first"), (coder.levels.size - 1, "last")) if r not in named}
        code = coder.code_of(rank) if rank >= 0 else "outside the table"
        return {"zero_block": (named.get(rank, "none of the named"), f"a zero {what} has code {code}")}

    def _thresholds(self, view: View) -> dict[str, tuple[str, str]]:
        cuts = self._bisect(view)
        if cuts is None:
            return {}
        view.cuts = cuts
        found: dict[str, tuple[str, str]] = {}
        for ties in ("toward_zero", "lower_signed") if view.quant_type == "fp4" else ("",):
            sets = oracle.named_cuts(view.levels.tobytes(), view.quant_type, ties)
            for name, named in sets.items():
                if np.array_equal(named, cuts):
                    found = {"thresholds": (name, f"all {cuts.size} bisected")}
                    return found | ({"fp4_ties": (ties, "negative midpoints")} if ties else {})
        middle = oracle.named_cuts(view.levels.tobytes(), view.quant_type, "toward_zero")["midpoint"]
        off = oracle.ordered(cuts) - oracle.ordered(middle)
        worst = int(np.argmax(np.abs(off)))
        why = f"{int((off != 0).sum())} of {cuts.size} differ, t[{worst}] is {cuts[worst]} ({off[worst]:+,} ulp)"
        return {"thresholds": ("none of the named", why)}

    def _bisect(self, view: View) -> Float32 | None:
        """Find, for each threshold, the largest float32 whose code is still the lower one."""
        count = view.coder.cuts.size
        low = np.full(count, oracle.ordered(np.float32([-1]))[0])
        high = -low
        while (high - low > 1).any():
            middle = (low + high) // 2
            ranks = self._ranks_at_one(view, oracle.unordered(middle))
            if ranks is None:
                return None
            above = ranks > np.arange(count)
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        return oracle.unordered(low)

    def _ranks_at_one(self, view: View, q: Float32) -> NDArray[np.int64] | None:
        """The ranks of values in blocks whose absmax is 1."""
        size = _blocksize(self._scope, view.function)
        blocks = values.anchored(q[None, :], np.ones(1, np.float32), size)
        got = self._encode(view, blocks)
        return None if got is None else got[0].reshape(blocks.shape)[:, 1:].reshape(-1)[: q.size]

    def _subnormals(self, view: View) -> dict[str, tuple[str, str]]:
        """A subnormal beside a normal number, then blocks whose absmax itself is subnormal."""
        size = _blocksize(self._scope, view.function)
        lead = np.float32([2.0**-126, 1.1e-38, 2.0**-127, 2.0**-130, 2.0**-140])
        x = np.zeros((lead.size, size), np.float32)
        x[:, 0], x[:, 1] = lead, lead / 2
        got = self._encode(view, x)
        if got is None or got[1].size != lead.size:
            return {}
        half, zero = view.coder.ranks(np.array([0.5, 0], np.float32))
        ranks = got[0].reshape(x.shape)[:, 1]
        found = {}
        if ranks[0] in (half, zero):
            how = "kept" if ranks[0] == half else "flushed"
            found["subnormal_input"] = (how, "2**-127 beside 2**-126")
        if np.array_equal(got[1], lead) and (ranks[1:] == zero).all():
            found["subnormal_scale"] = ("flushed", "subnormal absmax, all codes those of zero")
        return found

    def _normalisation(self, view: View) -> dict[str, tuple[str, str]]:
        rng = np.random.default_rng(5)
        size = _blocksize(self._scope, view.function)
        x, scale = values.discriminating(rng, view.coder.cuts, 64)
        blocks = values.anchored(x, scale, size)
        full = self._recipe(view, [blocks], size)
        if view.coder.cuts.size > 15:  # one partial block holds all candidates of a scale
            partial = self._recipe(view, list(values.anchored(x, scale, x.shape[1] + 1)[:24]), 4096)
        else:
            partial = self._recipe(view, list(blocks[:64, : size - 1]), size)
        found = {"normalisation_full": full, "normalisation_partial": partial}
        return {name: entry for name, entry in found.items() if entry[0]} | self._input_type(view)

    def _recipe(self, view: View, inputs: list[Float32], blocksize: int) -> tuple[str, str]:
        """Which recipe has no mismatch over these inputs; ('', ...) if nothing could be asked."""
        wrong = dict.fromkeys(("divide", "reciprocal"), 0)
        deviation, asked = 0, 0
        for x in inputs:
            got = self._encode(view, x, blocksize)
            if got is None or not got[1].size:
                continue
            blocks = oracle.blocks_of(x.shape, blocksize, view.dialect["layout"])
            asked += x.size
            for recipe in wrong:
                trial = view.dialect | {"normalisation_full": recipe, "normalisation_partial": recipe}
                q = oracle.scaled(x, got[1], blocks, trial)
                bad = view.coder.ranks(q) != got[0]
                wrong[recipe] += int(bad.sum())
                if recipe == "divide" and bad.any():
                    deviation = max(deviation, _deviation(q[bad], view.coder, got[0][bad]))
        if not asked:
            return "", ""
        fits = [recipe for recipe, count in wrong.items() if not count]
        if fits:
            return fits[0], f"{asked:,} values, 0 mismatches"
        why = f"no recipe matches {asked:,} values ({wrong}), max deviation {deviation} ulp"
        near = [name for name, w in dialects.BANDS.items() if deviation <= w]
        return (near[0] if near else "none of the named"), why

    def _input_type(self, view: View) -> dict[str, tuple[str, str]]:
        """For 16-bit input: is x scaled in float32 or in its own type?"""
        rng = np.random.default_rng(9)
        dtype = _dtype(self._scope, view.function, ("bfloat16", "float16"))
        if dtype == "float32":
            return {}
        size = _blocksize(self._scope, view.function)
        x = rng.standard_normal((64, size)).astype(oracle.FLOAT_TYPES[dtype])
        got = self._encode(view, x)
        blocks = oracle.blocks_of(x.shape, size, view.dialect["layout"])
        if got is None or got[1].size != blocks.sizes.size:
            return {}
        for kind in ("float32", "own"):
            q = oracle.scaled(x, got[1], blocks, view.dialect | {"input_type": kind})
            if np.array_equal(view.coder.ranks(q), got[0]):
                return {"input_type": (kind, f"{x.size:,} {dtype} values agree")}
        return {}

    def _quantize_absmax(self, view: View) -> dict[str, tuple[str, str]]:
        found = self._zero_group(view)
        for name, size in (("normalisation_full", 256), ("normalisation_partial", 255)):
            recipe = self._nested_recipe(view, size)
            if recipe[0]:
                found[name] = recipe
        return found

    def _zero_group(self, view: View) -> dict[str, tuple[str, str]]:
        """One absmax is its own mean: the residual, and so the group, is zero."""
        case = Case("quantize_absmax", {"absmax": np.ones(1, np.float32)}, {"blocksize": 256})
        got = self._values(case)
        if got is None or got[0].size != 1 or got[1].reshape(-1)[0] != 0:
            return {}
        return self._name_zero(view, int(view.coder.ranks_of(got[0].reshape(-1))[0]), "group")

    def _nested_recipe(self, view: View, size: int) -> tuple[str, str]:
        """Judge residuals on the implementation's own offset, near the outer cuts."""
        wrong = dict.fromkeys(itertools.product(("divide", "reciprocal"), ("midpoint", "nearest")), 0)
        rng = np.random.default_rng(13)
        asked = 0
        for _ in range(12):
            absmax = nested_candidates(rng, view.coder.cuts, size)
            got = self._values(Case("quantize_absmax", {"absmax": absmax}, {"blocksize": 256}))
            if got is None or got[0].size != size or got[1].size != 1:
                continue
            asked += size
            residual = absmax - got[2].astype(np.float32)
            blocks = oracle.blocks_of((size,), 256)
            ranks = view.coder.ranks_of(got[0].reshape(-1))
            for recipe, cuts in wrong:
                trial = {"normalisation_full": recipe, "normalisation_partial": recipe, "thresholds": cuts}
                q = oracle.scaled(residual, got[1].reshape(-1).astype(np.float32), blocks, trial)
                wrong[recipe, cuts] += int((oracle.coder(view.levels, trial).ranks(q) != ranks).sum())
        fits = [recipe for (recipe, cuts), count in wrong.items() if not count and cuts == "midpoint"]
        return (fits[0], f"{asked:,} residuals, 0 mismatches") if asked and fits else ("", "")


def nested_candidates(rng: np.random.Generator, cuts: Float32, size: int) -> Float32:
    """Absmax values whose residuals lie at the outer cuts: 1 +- t * n, balanced around 1."""
    scale = np.float32(rng.uniform(0.5, 1.0))
    outer = cuts[np.abs(cuts) > 0.12]
    chosen = rng.choice(outer, (size - 2) // 2)
    distance = oracle.shift(chosen * scale, rng.integers(-2, 3, chosen.size))
    pairs = np.concatenate([[scale, -scale], distance, -distance]).astype(np.float32)
    return (np.float32(1) + np.resize(pairs, size)).astype(np.float32)


def _deviation(q: Float32, coder: Coder, ranks: NDArray[np.int64]) -> int:
    """How far q lies on the wrong side of the cut that the returned rank implies, in ulps."""
    due = coder.ranks(q)
    between = np.where(ranks > due, np.minimum(ranks - 1, coder.cuts.size - 1), np.maximum(ranks, 0))
    cut = coder.cuts[between]
    return int(np.max(np.ceil(np.abs(q - cut) / np.spacing(np.abs(cut)))))


def _friendly(view: View, scope: Scope) -> Case:
    """A case that every implementation of the function should take: one full block or two."""
    size = _blocksize(scope, view.function)
    dtype = _dtype(scope, view.function)
    x = np.linspace(-1, 1, size, dtype=np.float32).astype(oracle.FLOAT_TYPES[dtype])
    four_bit = {"quant_type": view.table, "blocksize": size}
    one = np.ones(1, np.float32)
    codes = np.zeros(size, np.uint8)
    decoded = {"shape": [size], "dtype": dtype}
    match view.function:
        case "quantize_4bit":
            return Case(view.function, {"x": x}, four_bit)
        case "dequantize_4bit":
            return Case(view.function, {"packed": codes[: size // 2], "absmax": one}, four_bit | decoded)
        case "quantize_blockwise":
            return Case(view.function, {"x": x, "codebook": view.levels}, {"blocksize": size})
        case "dequantize_blockwise":
            arrays = {"codes": codes, "absmax": one, "codebook": view.levels}
            return Case(view.function, arrays, {"blocksize": size} | decoded)
        case "quantize_absmax":
            return Case(view.function, {"absmax": np.ones(256, np.float32)}, {"blocksize": 256})
    arrays = {"codes": codes[:1], "nested_absmax": one, "offset": np.array(0, np.float32)}
    return Case(view.function, arrays, {"blocksize": 256})


def _refused(answer: Answer) -> bool:
    return answer.status == "ERROR"


def _blocksize(scope: Scope, function: str) -> int:
    return scope.choose(function, "blocksize", (64, 32, 128, 256))


def _dtype(scope: Scope, function: str, prefer: tuple[str, ...] = ()) -> str:
    return scope.choose(function, "dtype", (*prefer, "float32", "bfloat16", "float16"))


def _tables(view: View) -> list[tuple[str, Float32]]:
    kinds = BY_NAME["codebook"].values
    if view.table != "nf4":
        return [("pinned", view.levels)]
    return [(kind, oracle.four_bit_levels("nf4", {"codebook": kind})) for kind in kinds]
