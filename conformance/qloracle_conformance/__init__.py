"""The conformance kit: judges anybody's QLoRA kernels against the executable specification.

An implementation is any module, object or file that offers some of the functions of
`qloracle_conformance.contract.protocol` under their names.  From the shell ``qloracle verify
IMPL``, from Python `verify` and `conformance_tests`, from pytest ``--qloracle-impl IMPL``.
"""

# Nothing is imported here: pytest loads this package in every run of an environment that has it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from qloracle_conformance.api import conformance_tests, verify

__all__ = ["conformance_tests", "verify"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from qloracle_conformance import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
