"""Finding an operation's implementation: the function of its name in the file of the other's."""

import importlib
import types
from collections.abc import Callable

NAMES = ("reference", "xla", "triton", "pallas_tpu")


def module(op: str, implementation: str) -> types.ModuleType:
    """`emojax_kernels.<op>.<implementation>`, imported when first asked for.

    Raises:
        ImportError: where Triton is asked for and not installed.
    """
    try:
        return importlib.import_module(f"emojax_kernels.{op}.{implementation}")
    except ModuleNotFoundError as missing:
        if missing.name != "triton":
            raise
        raise ImportError(
            f"{op}: implementation='triton' needs Triton; install it with "
            "`pip install 'emojax-kernels[cuda]'`."
        ) from missing


def chosen(op: str, implementation: str | None) -> str:
    """The implementation's name: the one asked for, or for None the automatic choice.

    Raises:
        ValueError: if there is none of that name.
    """
    name = automatic() if implementation is None else implementation
    if name not in NAMES:
        raise ValueError(
            f"{op}: implementation={implementation!r} is not known; use None (automatic) or one of "
            f"{', '.join(map(repr, NAMES))}."
        )
    return name


def find(op: str, name: str) -> Callable:
    """The implementation of `op` of that name.

    Raises:
        ImportError: where Triton is asked for and not installed.
    """
    return getattr(module(op, name), op)


def automatic() -> str:
    """The name that None stands for: "xla".

    On the CPU it is the fastest by measurement, elsewhere the one that is proven: "triton" and
    "pallas_tpu" have not been timed on the hardware that they are for.
    """
    return "xla"
