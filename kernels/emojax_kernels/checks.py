"""What the operations accept; anything else is an error that names what is supported."""

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16")


def dtypes(op: str, same: dict[str, jax.Array], bias: dict[str, jax.Array]) -> None:
    """Raise TypeError unless all of `same` share a supported dtype and `bias` has it or float32."""
    found = {name: str(jnp.asarray(a).dtype) for name, a in same.items()}
    kinds = set(found.values())
    if len(kinds) != 1 or not kinds <= set(DTYPES):
        raise TypeError(
            f"{op}: {_listed(found)}; supported: all of them float32 or all of them bfloat16."
        )
    for name, a in bias.items():
        if str(a.dtype) not in kinds | {"float32"}:
            raise TypeError(
                f"{op}: {name} is {a.dtype}; supported: float32 or the matrices' {kinds.pop()}."
            )


def shapes(op: str, arrays: dict[str, tuple[jax.Array, str]]) -> dict[str, int]:
    """Match every array's shape with its named axes, for example `{"x": (x, "tokens d")}`.

    Returns:
        The size of each named axis.

    Raises:
        ValueError: if a rank or an axis that two arrays share does not agree.
    """
    sizes: dict[str, int] = {}
    for name, (array, axes) in arrays.items():
        names = axes.split()
        agrees = array.ndim == len(names) and all(
            sizes.setdefault(axis, size) == size
            for axis, size in zip(names, array.shape, strict=True)
        )
        if not agrees:
            wanted = {other: f"[{a.replace(' ', ', ')}]" for other, (_, a) in arrays.items()}
            given = {other: a.shape for other, (a, _) in arrays.items()}
            raise ValueError(
                f"{op}: {name} does not fit; supported: {_listed(wanted)}; given: {_listed(given)}."
            )
    return sizes


def active(op: str, k: int, n: int) -> None:
    """Raise ValueError unless a token can have `k` of `n` latents."""
    if not 1 <= k <= n:
        raise ValueError(f"{op}: k={k} with n={n} latents; supported: 1 <= k <= n.")


def indices(op: str, array: jax.Array) -> None:
    """Raise TypeError unless `array` holds latent ids."""
    if array.dtype != jnp.int32:
        raise TypeError(f"{op}: indices is {array.dtype}; supported: int32.")


def mask(op: str, array: jax.Array, n: int) -> None:
    """Raise unless `array` says of each of n latents whether it may be used."""
    if array.dtype != jnp.bool_:
        raise TypeError(f"{op}: mask is {array.dtype}; supported: bool.")
    if array.shape != (n,):
        raise ValueError(f"{op}: mask is {array.shape}; supported: one entry per latent, ({n},).")


def _listed(found: dict) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())
