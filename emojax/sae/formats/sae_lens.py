"""SAELens' format: a folder with `cfg.json` and `sae_weights.safetensors`.

SAELens keeps `W_enc` as [d_in, d_sae], and its `constant_norm_rescale` scales each token to norm
√d_in where our `unit_norm` scales it to 1. The matrices stay, codes, `b_enc` and `b_dec` grow
by √d, and the reconstruction in raw units is the same.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as serialised

from emojax.errors import UserError
from emojax.files import atomic, writable_dir
from emojax.sae.coder import SaeConfig, SparseAutoencoder

SITES = {
    "resid_pre": "blocks.{}.hook_resid_pre",
    "resid_mid": "blocks.{}.hook_resid_mid",
    "resid_post": "blocks.{}.hook_resid_post",
    "attn_out": "blocks.{}.hook_attn_out",
    "mlp_out": "blocks.{}.hook_mlp_out",
}
SCALES = {"unit_norm": "constant_norm_rescale", "none": "none"}
# What we know how to read; anything else is refused by name.
READ = {
    "architecture": ("topk",),
    "normalize_activations": tuple(SCALES.values()),
    "reshape_activations": ("none",),
    "rescale_acts_by_decoder_norm": (False,),
}
IGNORED = {"d_in", "d_sae", "k", "dtype", "device", "apply_b_dec_to_input", "metadata"}


def export(directory: Path, sae: SparseAutoencoder) -> None:
    """Writes a dictionary as SAELens reads it.

    Raises:
      UserError: SAELens has no name for the site, or the folder is not writable.
    """
    config = sae.config
    if config.site not in SITES:
        raise UserError(
            f"SAELens has no name for the site {config.site!r}; it has {', '.join(SITES)}."
        )
    writable_dir(directory)
    by = math.sqrt(config.d_model) if config.input_scale == "unit_norm" else 1.0
    tensors = {
        "W_enc": np.ascontiguousarray(np.asarray(sae.w_enc).T),
        "b_enc": np.asarray(sae.b_enc) * by,
        "W_dec": np.asarray(sae.w_dec),
        "b_dec": np.asarray(sae.b_dec) * by,
    }
    cfg = {
        "architecture": "topk",
        "d_in": config.d_model,
        "d_sae": config.n_latents,
        "k": config.k,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": SCALES[config.input_scale],
        "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False,
        "metadata": {
            "model_name": config.model,
            "hook_name": SITES[config.site].format(config.layer),
            "prepend_bos": True,
        },
    }
    with atomic(directory / "sae_weights.safetensors") as partial:
        partial.write_bytes(serialised({name: t.astype(np.float32) for name, t in tensors.items()}))
    with atomic(directory / "cfg.json") as partial:
        partial.write_text(json.dumps(cfg, indent=2) + "\n")


def load(directory: Path) -> SparseAutoencoder:
    """Reads a TopK dictionary in SAELens' format.

    Raises:
      UserError: a file is missing or damaged, or asks for something that this version lacks.
    """
    try:
        cfg = json.loads((directory / "cfg.json").read_text())
        tensors = load_file(directory / "sae_weights.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"The SAELens folder {directory} cannot be read ({error}); it needs cfg.json and "
            "sae_weights.safetensors."
        ) from None
    faults = [
        f"{name} is {cfg.get(name)!r}" for name, known in READ.items() if cfg.get(name) not in known
    ]
    faults += [f"{name} is unknown" for name in cfg.keys() - READ.keys() - IGNORED]
    if faults:
        raise UserError(
            f"The SAELens dictionary {directory} asks for what this version cannot do "
            f"({'; '.join(sorted(faults))}); use one of the architecture topk."
        )
    config = _config(directory, cfg)
    n, d = config.n_latents, config.d_model
    shapes = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
    if {name: array.shape for name, array in tensors.items()} != shapes:
        raise UserError(
            f"The SAELens dictionary {directory} does not have the tensors {shapes} that its "
            "cfg.json says; get it again."
        )
    by = 1 / math.sqrt(d) if config.input_scale == "unit_norm" else 1.0
    w_enc = np.ascontiguousarray(tensors["W_enc"].T)
    b_enc, b_dec = tensors["b_enc"] * by, tensors["b_dec"] * by
    if not cfg.get("apply_b_dec_to_input", True):
        b_enc = b_enc + w_enc @ b_dec  # ours subtracts b_dec first
    arrays = {"w_enc": w_enc, "b_enc": b_enc, "w_dec": tensors["W_dec"], "b_dec": b_dec}
    return SparseAutoencoder(
        **{name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}, config=config
    )


def _config(directory: Path, cfg: dict[str, Any]) -> SaeConfig:
    """Our config of theirs; the tap comes from the hook's name."""
    try:
        metadata = cfg.get("metadata") or {}
        hook = metadata["hook_name"]
        site = next(s for s, name in SITES.items() if hook.endswith(name.split("{}")[1]))
        return SaeConfig(
            d_model=int(cfg["d_in"]),
            n_latents=int(cfg["d_sae"]),
            k=int(cfg["k"]),
            model=str(metadata["model_name"]),
            layer=int(hook.split(".")[1]),
            site=site,
            input_scale={name: ours for ours, name in SCALES.items()}[cfg["normalize_activations"]],
        )
    except (KeyError, TypeError, ValueError, IndexError, StopIteration, AttributeError) as error:
        raise UserError(
            f"The SAELens folder {directory} has a cfg.json without a usable {error}; it must name "
            "d_in, d_sae, k, and metadata.model_name and hook_name."
        ) from None
