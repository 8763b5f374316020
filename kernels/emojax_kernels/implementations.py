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


def find(op: str, implementation: str | None, offered: tuple[str, ...] = NAMES) -> Callable:
    """The implementation of `op` by name, or the automatic choice for None.

    Automatic is "xla": on the CPU the fastest by measurement, elsewhere the one that is proven.
    "triton" and "pallas_tpu" have not been timed on the hardware that they are for.

    Raises:
        ValueError: if `implementation` is none of `offered`.
        ImportError: where Triton is asked for and not installed.
    """
    name = implementation or automatic()
    if name not in offered:
        raise ValueError(
            f"{op}: implementation={implementation!r} is not known; use None (automatic) or one of "
            f"{', '.join(map(repr, offered))}."
        )
    return getattr(module(op, name), op)


def automatic() -> str:
    """The name that None stands for."""
    return "xla"
