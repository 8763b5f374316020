"""The whole way from text to an artefact: read, capture, train, measure, write."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.experimental import multihost_utils

from emojax import files
from emojax.errors import UserError
from emojax.lm import sources
from emojax.lm.capture import Tap, check_taps
from emojax.sae import artefact as artefacts
from emojax.sae import corpus, metrics, state, store, trainer

if TYPE_CHECKING:
    from emojax.config import Config

PACKAGES = ("emojax", "emojax-kernels", "jax", "optax", "numpy", "transformers", "tensorstore")


def run(
    config: "Config",
    corpora: Sequence[tuple[str, Path]],
    *,
    out: Path,
    artefact: Path,
    store_dir: Path | None,
    command: str,
) -> dict[str, Any]:
    """Trains and measures a dictionary, and writes it as an artefact.

    What can be wrong is checked before anything long begins; each stage goes on from what an
    interrupted run left.

    Args:
      config: model, dictionary, data, training.
      corpora: language and place of each corpus (`emojax.sae.documents`, `emojax.sae.hub`).
      out: the run's folder: the resolved config, log and checkpoints.
      artefact: the result's folder.
      store_dir: where activations are kept (None: in the cache, under the text's digest).
      command: how the run was started, for the record.

    Returns:
      What `evaluation.json` holds.

    Raises:
      UserError: something in the input is bad.
      KeyboardInterrupt: a signal came; the same call goes on.
    """
    sae, data, train = config.sae, config.data, config.train
    state.make_mesh(train, sae.n_latents)
    files.writable_dir(out)
    files.writable_dir(artefact)
    if jax.process_index() == 0:
        with files.atomic(out / "config.json") as partial:
            partial.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    texts = [corpus.read(language, path) for language, path in corpora]
    lm = sources.load(sae.model)
    tap = Tap(sae.layer, sae.site)
    target = None if sae.target_site is None else Tap(sae.layer, sae.target_site)
    check_taps(lm.config, [tap] if target is None else [tap, target])
    if sae.d_model != lm.config.d_model:
        raise UserError(
            f"The SAE's d_model is {sae.d_model} but {lm.name} is {lm.config.d_model} wide; set "
            f"sae.d_model={lm.config.d_model}."
        )
    rows = corpus.draw(lm, texts, data)
    if store_dir is None:
        sites = sae.site if target is None else f"{sae.site}-{target.site}"
        name = f"{lm.name}-{sae.layer}-{sites}-{rows['train'].digest[:12]}"
        store_dir = files.cache_dir() / "activations" / name
    capture = functools.partial(
        store.capture, lm, tap, rows, store_dir, limit_gib=data.store_gib, target=target
    )
    splits = _first_process_first(capture)

    origin = {
        "model": {"name": lm.name, "fingerprint": lm.fingerprint},
        "data": dataclasses.asdict(data),
        "corpora": corpus.record(texts),
        "text": {split: part.digest for split, part in rows.items()},
    }
    trained = trainer.train(sae, train, splits["train"], out, provenance=origin)
    trained = artefacts.rounded(trained)
    untrained = state.untrained(sae, state.sample(splits["train"]))

    both = {"trained": trained, "untrained": untrained}
    evaluation: dict[str, Any] = {
        name: metrics.reconstruction(dictionary, splits["heldout"])
        for name, dictionary in both.items()
    }
    mean = metrics.mean_activation(splits["heldout"])
    # A transcoder reads one site and writes another, which a splice at one site cannot do.
    evaluation["loss"] = (
        metrics.loss_recovered(lm, tap, both, rows["heldout"], mean) if target is None else {}
    )
    provenance = origin | {
        "train": dataclasses.asdict(train),
        "tokens": {name: split.tokens for name, split in splits.items()},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "command": command,
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if jax.process_index() == 0:
        log = out / "training_log.jsonl"
        artefacts.save(artefact, trained, untrained, provenance, evaluation, log)
    return evaluation


def _first_process_first(work: Callable[[], Any]) -> Any:
    """Lets the first process do it; the others then find it done on the disk that all share."""
    if jax.process_index() > 0:
        multihost_utils.sync_global_devices("first process")
        return work()
    done = work()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("first process")
    return done
