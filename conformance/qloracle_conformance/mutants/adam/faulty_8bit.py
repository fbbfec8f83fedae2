"""Faulty implementations of the 8-bit Adam: how a step, and the state that it keeps, go wrong."""

from typing import Any

import numpy as np

import qloracle
from qloracle_conformance.mutants import parts
from qloracle_conformance.mutants.adam import steps
from qloracle_conformance.mutants.adam.steps import Adam, coded, coded_by, decoded, numbers
from qloracle_conformance.mutants.parts import Array, Encoder, fault

RIGHT = Adam().step_8bit
SIGNED = qloracle.dynamic_codebook()
ZERO = 127  # the code of zero in the signed map


def _coded_again(codes: Array, absmax: Array, levels: Array, blocksize: int) -> Array:
    old = decoded(codes, absmax, levels, blocksize)
    again, scale = steps.quantized(old, levels, blocksize=blocksize)
    return decoded(again, scale, levels, blocksize)


def _over_old_scales(s: steps.State) -> steps.States:
    def quantized(x: Array, levels: Array, old: Array) -> Any:
        encode = Encoder(scale=lambda flat, _, size: parts.divided(flat, old, size)).eight_bit
        return encode(x, levels, blocksize=s.blocksize)

    signed, unsigned = s.maps
    return (*quantized(s.m, signed, s.old[1]), *quantized(s.v, unsigned, s.old[3]))


def _zero_as_131(s: steps.State) -> steps.States:
    m_codes, *others = coded(s)
    lost = np.where(m_codes == ZERO, 131, m_codes) if s.maps[0].size == 256 else m_codes
    return (lost.astype(np.uint8), *others)


def _short_block_left(s: steps.State) -> steps.States:
    full = s.m.size // s.blocksize
    ends = (full * s.blocksize, full) * 2  # of codes, and of absmax
    found = zip(coded(s), s.old, ends, strict=True)
    return tuple(np.concatenate([new[:end], old[end:]]) for new, old, end in found)


# fmt: off
# ---- the step ------------------------------------------------------------------------------------

NoBiasCorrection8Bit = fault("S11b", "The 8-bit step forgets the bias correction.",
    adam_step_8bit=Adam(k=lambda o: numbers(o)._replace(c1=1, c2=1)).step_8bit)
EpsInsideRoot8Bit = fault("S11b", "eps stands inside the root of the 8-bit step.",
    adam_step_8bit=Adam(d=lambda k, s: (s.m / k.c1) / np.sqrt(s.v / k.c2 + k.eps)).step_8bit)
CoupledDecay8Bit = fault("S11b", "The 8-bit step sends its decay through the gradient.",
    adam_step_8bit=Adam(k=lambda o: numbers(o._replace(decoupled_weight_decay=False))).step_8bit)
DecayAfterUndeclared8Bit = fault("S11b",
    "The 8-bit update is decayed too, and the declaration says that it is not.",
    {"dialect": {"decay_order": "before"}}, adam_step_8bit=Adam(p=steps.after).step_8bit)
Float32BetasUndeclared8Bit = fault("S11b", "Its betas are float32, and declared not to be.",
    {"dialect": {"betas": "float64"}}, adam_step_8bit=Adam(k=steps.float32_betas).step_8bit)
RawGradientUsed = fault("S11b",
    "The parameter moves by the gradient that came in (bitsandbytes' 8-bit RMSProp on CUDA).",
    adam_step_8bit=Adam(d=lambda k, s: s.g0 / (np.sqrt(s.v / k.c2) + k.eps)).step_8bit)

# ---- the state that is read ----------------------------------------------------------------------

OldStateCodedAgain = fault("S11b", "The old state is quantized once more before it is used.",
    adam_step_8bit=Adam(decode=_coded_again).step_8bit)
SignedMapForSquares = fault("S11b", "v is read and coded with the signed map, half of it unused.",
    adam_step_8bit=lambda *arrays, **options: RIGHT(*arrays, **{"v_codebook": SIGNED} | options))
FirstScaleForAll = fault("S11b", "Every block of the state is decoded by the absmax of the first.",
    adam_step_8bit=Adam(decode=lambda codes, absmax, levels, size: decoded(
        codes, np.full_like(absmax, absmax[0]), levels, size)).step_8bit)

# ---- the state that is kept ----------------------------------------------------------------------

OneScaleForAll = fault("S11b", "The new codes of all blocks have the absmax of the whole tensor.",
    adam_step_8bit=Adam(code=coded_by(Encoder(peak=lambda flat, size:
        np.full_like(parts.peaks(flat, size), np.abs(flat).max())).eight_bit)).step_8bit)
ScalesNotUpdated = fault("S11b", "The codes are new, the absmax are those of the step before.",
    adam_step_8bit=Adam(
        code=lambda s: (coded(s)[0], s.old[1].copy(), coded(s)[2], s.old[3].copy())).step_8bit)
CodedOverOldScales = fault("S11b", "The new moments are coded over the absmax of the step before.",
    adam_step_8bit=Adam(code=_over_old_scales).step_8bit)
CodesByFloor = fault("S11b",
    "Moments are coded to the level below, not to the nearest one (bitsandbytes #1582).",
    adam_step_8bit=Adam(code=coded_by(Encoder(
        thresholds=lambda levels: levels[1:],
        rank=lambda q, levels: np.searchsorted(levels, q, side="right")).eight_bit)).step_8bit)
ZeroAs131 = fault("S11b", "Zero gets code 131, not 127: parameters drift (bitsandbytes on a CPU).",
    adam_step_8bit=Adam(code=_zero_as_131).step_8bit)
SquaresScaleInBFloat16 = fault("S11b", "The absmax of v is stored in bfloat16.",
    adam_step_8bit=Adam(
        code=lambda s: (*coded(s)[:3], parts.rounded(coded(s)[3], parts.BFLOAT16))).step_8bit)
RootOfSquaresCoded = fault("S11b", "The root of v is what is coded.",
    adam_step_8bit=Adam(code=lambda s: coded(s._replace(v=np.sqrt(s.v)))).step_8bit)
ShortBlockLeft = fault("S11b",
    "The state of a short last block is never written (bitsandbytes #1884 of codes).",
    adam_step_8bit=Adam(code=_short_block_left).step_8bit)
MapsIgnored = fault("S11b", "Maps that are passed in are taken and not used.",
    adam_step_8bit=parts.insisting(RIGHT, m_codebook=None, v_codebook=None))
ThresholdsMoved = fault("S11b",
    "The thresholds are off by 2^-18 of themselves, as if typed with five digits.",
    adam_step_8bit=Adam(code=coded_by(Encoder(thresholds=lambda levels:
        qloracle.thresholds(levels) * np.float32(1 + 2.0**-18)).eight_bit)).step_8bit)
