"""The whole way from text to an artefact: read, capture, train, measure, write."""

import dataclasses
import functools
import importlib.metadata
import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from emojax import files
from emojax.errors import UserError
from emojax.lm import sources
from emojax.lm.capture import Tap, check_taps
from emojax.lm.config import DecoderConfig
from emojax.lm.model import LanguageModel
from emojax.sae import artefact as artefacts
from emojax.sae import (
    checkpoints,
    corpus,
    log,
    metrics,
    mixing,
    state,
    store,
    stream,
    text_stream,
    trainer,
)
from emojax.sae.coder import SaeConfig, SparseAutoencoder
from emojax.sae.step import is_fused
from emojax.sae.stream import ActivationsConfig, Stream, own_mesh, width_of

if TYPE_CHECKING:
    from emojax.config import Config

PACKAGES = ("emojax", "emojax-kernels", "jax", "optax", "numpy", "transformers", "tensorstore")


def run_all(
    configs: Mapping[str, "Config"],
    corpora: Sequence[tuple[str, Path]],
    *,
    out: files.Place,
    artefact: files.Place,
    store_dir: Path | str | None,
    command: str,
) -> dict[str, dict[str, Any]]:
    """Trains and measures dictionaries on the same text, and writes each as an artefact.

    What can be wrong is checked before anything long begins, for all dictionaries; each stage goes
    on from what an interrupted run left. A dictionary that is finished is not trained again; its
    model card is written anew. Several share one pass of the language model: layers, sites, widths,
    architectures and seeds may differ.

    Args:
      configs: by name, which is also its folder: model, dictionary, data, training.
      corpora: language and place of each corpus (`emojax.sae.documents`, `emojax.sae.hub`).
      out: the runs' folders, on a disk or at a `gs://` address: resolved config, log, checkpoints.
      artefact: the results' folders, likewise.
      store_dir: where activations are kept, a folder or a `gs://` address (None: in the cache,
        under the text's digest).
      command: how the run was started, for the record.

    Returns:
      By name, what `evaluation.json` holds.

    Raises:
      UserError: something in the input is bad.
      KeyboardInterrupt: a signal came; the same call goes on.
    """
    first = next(iter(configs.values()))
    data, activations = first.data, first.activations
    streamed = activations.streamed
    _check_together(configs)
    own = own_mesh(state.make_mesh(first.train, first.sae.n_latents), activations.model_shards)
    for name, config in configs.items():
        check_config(config, jax.default_backend())
        state.make_mesh(config.train, config.sae.n_latents)
        for folder in (out / name, artefact / name):
            files.writable_dir(folder)
    origin: dict[str, Any] = {"data": dataclasses.asdict(data)}
    if streamed:
        # The model's type is said of the model, and over how much it is split is no trait of a run.
        told = dataclasses.asdict(activations)
        origin["activations"] = {
            n: told[n] for n in told if n not in ("model_dtype", "model_shards")
        }
    absent = {n: c for n, c in configs.items() if not _is_there(artefact / n, c, origin)}
    for name, config in absent.items():
        trainer.check_run(out / name, config.sae, config.train, origin)
    _check_room(absent, out)
    corpus.check_languages([language for language, _ in corpora], data)
    texts = [corpus.read(language, path, hold=not streamed) for language, path in corpora]

    def check(model: DecoderConfig) -> None:
        for config in configs.values():
            _check_fits(config.sae, model)

    lm = sources.load(
        first.sae.model, dtype=jnp.dtype(activations.model_dtype), mesh=own, check=check
    )
    if streamed:
        rows = {"heldout": text_stream.heldout(lm, data, corpora)}
    else:
        rows = corpus.draw(lm, texts, data)
    origin = {
        "model": {"name": lm.name, "fingerprint": lm.fingerprint} | _named_dtype(activations),
        **origin,
        "corpora": corpus.record(texts),
        "text": {split: part.digest for split, part in rows.items()},
    }
    found: dict[str, Any] = dict.fromkeys(configs)
    for name, config in configs.items():
        if (whole := _finished(artefact / name, config, origin)) is not None:
            found[name] = dict(whole.evaluation)
            if jax.process_index() == 0:
                artefacts.write_card(artefact / name, whole.record, whole.evaluation)
    todo = {name: configs[name] for name, evaluation in found.items() if evaluation is None}
    for name, config in todo.items():
        trainer.check_run(out / name, config.sae, config.train, origin)
    if todo and not streamed:
        tokens = store.counted(lm, rows["train"])
        for config in todo.values():
            store.check_pass(tokens, config.train.batch_tokens)
    if jax.process_count() > 1:  # Nobody writes before all have looked.
        multihost_utils.sync_global_devices("what is finished")
    if not todo:
        return found

    taps = sorted({tap for config in configs.values() for tap in _taps(config.sae)})
    if store_dir is None:
        sites = "-".join(f"{tap.layer}-{tap.site}" for tap in taps)
        digest = next(iter(rows.values())).digest[:12]
        parts = (lm.name, *_named_dtype(activations).values(), sites, digest)
        store_dir = files.cache_dir() / "activations" / "-".join(parts)
    held = _first_process_first(
        functools.partial(store.capture_taps, lm, taps, rows, store_dir, limit_gib=data.store_gib)
    )
    for name, config in todo.items():
        if len(configs) > 1 and jax.process_index() == 0:
            logging.info("Training %s, one of %d dictionaries.", name, len(configs))
        splits = held.splits(*_taps(config.sae))
        source = _streamed(config, lm, corpora) if streamed else splits["train"]
        trained = trainer.train(
            config.sae,
            config.train,
            source,
            out / name,
            provenance=origin,
            resolved=dataclasses.asdict(config),
        )
        # Before a sample is taken, which begins the stream again.
        read = _streamed_text(source, config) if isinstance(source, Stream) else {"tokens": {}}
        trained = artefacts.rounded(trained)
        sample = state.sample(source)
        untrained = state.untrained(config.sae, sample)
        all_three = {
            "trained": trained,
            "random": state.random(config.sae, sample),
            "untrained": untrained,
        }
        evaluation = found[name] = _measured(lm, config.sae, all_three, splits["heldout"], rows)
        tokens = {split: held.tokens[split] for split in rows}
        provenance = origin | {
            "train": dataclasses.asdict(config.train),
            **read,
            "tokens": read["tokens"] | tokens,
            "versions": {"python": platform.python_version()}
            | {package: importlib.metadata.version(package) for package in PACKAGES},
            "command": command,
            "made": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        if jax.process_index() == 0:
            steps = config.train.epochs * source.steps_per_epoch(config.train.batch_tokens)
            with log.Log(out / name, steps) as lines:
                lines.measured(steps, evaluation)
            written = out / name / "training_log.jsonl"
            artefacts.save(artefact / name, trained, untrained, provenance, evaluation, written)
    return found


def check_config(config: "Config", platform: str) -> None:
    """Refuses what would be refused of a config whatever the language model and the text are.

    Args:
      config: all of it.
      platform: of the devices, as JAX calls it.

    Raises:
      UserError: the update is not for the architecture, or what is streamed does not fit the batch.
    """
    is_fused(config.sae, config.train, platform)
    if config.activations.streamed:
        devices = config.train.data_shards * config.train.latent_shards
        stream.buffer_depth(config.activations, config.train.batch_tokens, devices)
        stream.steps_of_pass(config.data.tokens, config.train.batch_tokens)


def _check_room(configs: Mapping[str, "Config"], out: files.Place) -> None:
    """Refuses a disk without room for the checkpoints of all dictionaries: those of each stay."""
    lasting, largest = 0, 0
    for name, config in configs.items():
        mesh = state.make_mesh(config.train, config.sae.n_latents)
        source: Any = {}
        if config.activations.streamed:
            batch = config.train.batch_tokens
            source = mixing.shapes(
                mesh,
                len(_taps(config.sae)),
                batch,
                stream.buffer_depth(config.activations, batch, mesh.size),
                config.sae.d_model,
                config.activations.dtype,
            )
        size = trainer.checkpoint_bytes(config.sae, config.train, mesh, source)
        lasting += checkpoints.room(out / name / "checkpoints", config.train.keep, size)
        largest = max(largest, size)
    files.require_room(out, lasting + largest)


def _check_together(configs: Mapping[str, "Config"]) -> None:
    """Refuses dictionaries that cannot share one capture."""
    first = next(iter(configs.values()))
    for config in configs.values():
        for name, own, other in (
            ("sae.model", config.sae.model, first.sae.model),
            ("data", config.data, first.data),
            ("activations", config.activations, first.activations),
        ):
            if own != other:
                raise UserError(
                    f"Dictionaries that are trained together have one {name}, and these have "
                    "several; train them in runs of their own."
                )
    if first.activations.streamed and len(configs) > 1:
        raise UserError(
            "Streamed activations serve one dictionary; set activations.streamed=false, so that "
            "all of them are trained on stored ones."
        )


def _named_dtype(activations: ActivationsConfig) -> dict[str, str]:
    """The type of the model's weights for records, in which none has always meant float32."""
    dtype = activations.model_dtype
    return {} if dtype == "float32" else {"dtype": dtype}


def _taps(sae: SaeConfig) -> list[Tap]:
    """What a dictionary reads, and what it is to make of it if it is a transcoder."""
    return [Tap(sae.layer, site) for site in (sae.site, sae.target_site) if site is not None]


def _check_fits(sae: SaeConfig, model: DecoderConfig) -> None:
    check_taps(model, _taps(sae))
    width = width_of(model, _taps(sae))
    if sae.d_model != width:
        raise UserError(
            f"The SAE's d_model is {sae.d_model} but {sae.site} of {sae.model} is {width} wide; "
            f"set sae.d_model={width}."
        )


def _is_there(folder: files.Place, config: "Config", origin: Mapping[str, Any]) -> bool:
    """Whether a folder has the record of this dictionary, as far as it is known.

    Raises:
      UserError: it has that of another one, which would be lost.
    """
    wanted = dict(origin) | {
        "format": artefacts.FORMAT,
        "sae": dataclasses.asdict(config.sae),
        "train": dataclasses.asdict(config.train),
    }
    return trainer.check_same(folder / "config.json", "dictionary", "--artefact", wanted)


def _finished(
    folder: files.Place, config: "Config", origin: Mapping[str, Any]
) -> artefacts.Artefact | None:
    """The dictionary if it is there and whole; one that is damaged is made again."""
    if not _is_there(folder, config, origin):
        return None
    try:
        return artefacts.load(folder)
    except UserError:
        return None


def _streamed(config: "Config", lm: LanguageModel, corpora: Sequence[tuple[str, Path]]) -> Stream:
    """The activations of this process' part of the text."""
    mesh = state.make_mesh(config.train, config.sae.n_latents)
    hosts = jax.process_index(), jax.process_count()
    text = text_stream.rows(lm, config.data, corpora, "train", *hosts, config.train.epochs)
    return Stream(
        lm,
        _taps(config.sae),
        text,
        config.activations,
        tokens=config.data.tokens,
        batch_tokens=config.train.batch_tokens,
        mesh=mesh,
    )


def _streamed_text(source: Stream, config: "Config") -> dict[str, Any]:
    """How much text was trained on, and how often: a text may be shorter than what was asked."""
    asked = config.data.tokens / jax.process_count()
    own = round(text_stream.distinct(source.position()["packer"]["text"], asked))
    # In two parts, as devices have integers of 32 bits.
    parts = multihost_utils.process_allgather(np.array(divmod(own, 2**20), np.int32))
    high, low = np.reshape(parts, (-1, 2)).sum(axis=0, dtype=np.int64)
    tokens = min(int(high * 2**20 + low), config.data.tokens)
    passes = config.train.epochs * config.data.tokens / tokens
    return {"tokens": {"train": tokens}, "passes": passes}


def _measured(
    lm: LanguageModel,
    sae: SaeConfig,
    dictionaries: Mapping[str, SparseAutoencoder],
    heldout: store.Split,
    rows: Mapping[str, corpus.Rows],
) -> dict[str, Any]:
    evaluation: dict[str, Any] = {
        name: metrics.reconstruction(dictionary, heldout)
        for name, dictionary in dictionaries.items()
    }
    tap, *target = _taps(sae)
    mean = metrics.mean_activation(heldout)
    # A transcoder reads one site and writes another, which a splice at one site cannot do.
    evaluation["loss"] = (
        {} if target else metrics.loss_recovered(lm, tap, dictionaries, rows["heldout"], mean)
    )
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
