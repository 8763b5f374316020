"""SAELens' format: a folder with `cfg.json` and `sae_weights.safetensors`.

SAELens keeps `W_enc` as [d_in, d_sae], and its `constant_norm_rescale` scales each token to norm
√d_in where our `unit_norm` scales it to 1. The matrices stay; codes, thresholds, `b_enc` and
`b_dec` grow by √d; the reconstruction in raw units is the same. A gated dictionary is a JumpReLU
once it is trained (`emojax.sae.objectives.gated`) and is written as one; so are BatchTopK and
Matryoshka, as SAELens itself does.
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
from emojax.lm.run_with_cache import HOOK_NAMES
from emojax.sae.coder import SaeConfig, SparseAutoencoder

SITES = {
    site: HOOK_NAMES[site]
    for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
}
# mean_norm is folded into the arrays.
SCALES = {"unit_norm": "constant_norm_rescale", "mean_norm": "none", "none": "none"}
# Their name of what each architecture is when it is trained.
WRITTEN = {
    "topk": "topk",
    "batch_topk": "jumprelu",
    "matryoshka": "jumprelu",
    "jumprelu": "jumprelu",
    "gated": "jumprelu",
    "relu": "standard",
}
# Ours of theirs.
ARCHITECTURES = {"topk": "topk", "jumprelu": "jumprelu", "gated": "gated", "standard": "relu"}
# Latents per token that a code has room for where the file says nothing of k.
ROOM = 1024
# What we know how to read; anything else is refused by name.
READ = {
    "architecture": tuple(ARCHITECTURES),
    "normalize_activations": ("constant_norm_rescale", "none"),
    "reshape_activations": ("none",),
    "rescale_acts_by_decoder_norm": (False,),
}
IGNORED = {"d_in", "d_sae", "k", "dtype", "device", "apply_b_dec_to_input", "metadata"}


def export(directory: Path, sae: SparseAutoencoder, *, prepend_bos: bool = True) -> None:
    """Writes a dictionary as SAELens reads it.

    Args:
      directory: where to.
      sae: the dictionary.
      prepend_bos: whether the model's texts begin with BOS; False for Qwen.

    Raises:
      UserError: SAELens has no name for it, or the folder is not writable.
    """
    config = sae.config
    if config.site not in SITES:
        raise UserError(
            f"SAELens has no name for the site {config.site!r}; it has {', '.join(SITES)}."
        )
    if config.target_site is not None:
        raise UserError("Transcoders are not written in SAELens' format; keep the artefact.")
    writable_dir(directory)
    by = math.sqrt(config.d_model) if config.input_scale == "unit_norm" else 1.0
    tensors = {
        "W_enc": np.ascontiguousarray(np.asarray(sae.w_enc).T),
        "b_enc": np.asarray(sae.b_enc) * by,
        "W_dec": np.asarray(sae.w_dec),
        "b_dec": np.asarray(sae.b_dec) * by,
    }
    if sae.threshold is not None and config.architecture != "relu":
        tensors["threshold"] = np.asarray(sae.threshold) * by
    cfg = {
        "architecture": WRITTEN[config.architecture],
        "d_in": config.d_model,
        "d_sae": config.n_latents,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": SCALES[config.input_scale],
        "reshape_activations": "none",
        "metadata": {
            "model_name": config.model,
            "hook_name": SITES[config.site].format(config.layer),
            "prepend_bos": prepend_bos,
        },
    }
    if config.architecture == "topk":
        cfg |= {"k": config.k, "rescale_acts_by_decoder_norm": False}
    with atomic(directory / "sae_weights.safetensors") as partial:
        partial.write_bytes(serialised({name: t.astype(np.float32) for name, t in tensors.items()}))
    with atomic(directory / "cfg.json") as partial:
        partial.write_text(json.dumps(cfg, indent=2) + "\n")


def load(directory: Path) -> SparseAutoencoder:
    """Reads a dictionary in SAELens' format.

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
    found = {"rescale_acts_by_decoder_norm": False} | cfg
    faults = [
        f"{name} is {found.get(name)!r}"
        for name, known in READ.items()
        if found.get(name) not in known
    ]
    faults += [f"{name} is unknown" for name in cfg.keys() - READ.keys() - IGNORED]
    if faults:
        raise UserError(
            f"The SAELens dictionary {directory} asks for what this version cannot do "
            f"({'; '.join(sorted(faults))}); use one of {', '.join(ARCHITECTURES)}."
        )
    config = _config(directory, cfg)
    n, d = config.n_latents, config.d_model
    shapes = {"W_enc": (d, n), "W_dec": (n, d), "b_dec": (d,)}
    biases = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}
    shapes |= {name: (n,) for name in biases.get(cfg["architecture"], ("b_enc",))}
    if {name: array.shape for name, array in tensors.items()} != shapes:
        raise UserError(
            f"The SAELens dictionary {directory} does not have the tensors {shapes} that its "
            "cfg.json says; get it again."
        )
    by = 1 / math.sqrt(d) if config.input_scale == "unit_norm" else 1.0
    w_enc, b_dec = np.ascontiguousarray(tensors["W_enc"].T), tensors["b_dec"]
    # Ours subtracts b_dec first; theirs may not.
    inside = 0.0 if cfg.get("apply_b_dec_to_input", True) else w_enc @ b_dec
    arrays = {"w_enc": w_enc, "w_dec": tensors["W_dec"], "b_dec": b_dec * by}
    if config.architecture == "gated":
        gain = np.exp(tensors["r_mag"])
        arrays["w_enc"] = w_enc * gain[:, None]
        arrays["b_enc"] = (tensors["b_mag"] + gain * inside) * by
        threshold = np.maximum(tensors["b_mag"] - gain * tensors["b_gate"], 0)
        arrays["threshold"] = threshold * by
    else:
        arrays["b_enc"] = (tensors["b_enc"] + inside) * by
    if config.architecture == "jumprelu":
        arrays["threshold"] = tensors["threshold"] * by
    if config.architecture == "relu":
        arrays["threshold"] = np.zeros(n)
    return SparseAutoencoder(
        **{name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}, config=config
    )


def _config(directory: Path, cfg: dict[str, Any]) -> SaeConfig:
    """Our config of theirs; the tap comes from the hook's name."""
    try:
        metadata = cfg.get("metadata") or {}
        hook = metadata["hook_name"]
        scale = {"constant_norm_rescale": "unit_norm", "none": "none"}[cfg["normalize_activations"]]
        n = int(cfg["d_sae"])
        site = next(s for s, name in SITES.items() if hook.endswith(name.split("{}")[1]))
        return SaeConfig(
            d_model=int(cfg["d_in"]),
            n_latents=n,
            k=int(cfg["k"]) if cfg["architecture"] == "topk" else max(1, min(n, ROOM) // 4),
            architecture=ARCHITECTURES[cfg["architecture"]],
            model=str(metadata["model_name"]),
            layer=int(hook.split(".")[1]),
            site=site,
            input_scale=scale,
        )
    except (KeyError, TypeError, ValueError, IndexError, StopIteration, AttributeError) as error:
        raise UserError(
            f"The SAELens folder {directory} has a cfg.json without a usable {error}; it must name "
            "d_in, d_sae, k, and metadata.model_name and hook_name."
        ) from None
