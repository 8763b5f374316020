"""Where a study's numbers come from: versions, seeds, hashes, the machine, the works behind it."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

import emojax
from emojax.emotion.features import Thresholds
from emojax.lm.model import LanguageModel
from emojax.report import results as schema
from emojax.report.names import LANGUAGES
from emojax.sae.artefact import Artefact
from emojax.study.analysis import Material
from emojax.study.settings import Study

_PACKAGES = (
    "emojax",
    "emojax-kernels",
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "scipy",
    "scikit-learn",
    "statsmodels",
    "transformers",
    "tokenizers",
    "gguf",
    "wordfreq",
)


def run(
    settings: Study,
    lm: LanguageModel,
    trained: Artefact,
    material: Mapping[schema.Language, Material],
    command: str,
    started: datetime.datetime,
    seconds: dict[str, float],
) -> schema.Run:
    """What was run, on what, with what."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return schema.Run(
        command=command,
        started=started.isoformat(timespec="seconds"),
        machine=f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {platform.platform()}",
        versions={"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _PACKAGES}
        | _commit(Path(emojax.__file__).parent.parent),
        seeds={"study": settings.seed, "untrained dictionary": trained.sae.config.seed},
        config=json.loads(json.dumps(dataclasses.asdict(settings))),
        seconds=dict(seconds),
        peak_memory_gib=peak / (2**30 if sys.platform == "darwin" else 2**20),
        sources=_sources(settings, lm, trained, material),
    )


def _commit(checkout: Path) -> dict[str, str]:
    """The commit of a checkout, "-dirty" with changes; nothing where emojax is installed alone."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    known = (checkout / ".git").exists() and found.returncode == 0
    return {"emojax commit": found.stdout.strip()} if known else {}


def model(lm: LanguageModel, trained: Artefact) -> schema.Model:
    """The language model and the tap."""
    config = trained.sae.config
    return schema.Model(
        name=lm.name,
        architecture=json.loads((lm.directory / "config.json").read_text())["model_type"],
        n_layers=lm.config.n_layers,
        d_model=lm.config.d_model,
        vocab_size=lm.config.vocab_size,
        n_parameters=sum(leaf.size for leaf in jax.tree.leaves(lm.params)),
        layer=config.layer,
        site=config.site,
        fingerprint=lm.fingerprint,
    )


def sae(lm: LanguageModel, trained: Artefact) -> schema.Sae:
    """The dictionary, with the metrics that its artefact was shipped with."""
    config = trained.sae.config
    return schema.Sae(
        name=_name(trained),
        n_latents=config.n_latents,
        k=config.k,
        training_tokens=trained.record["tokens"]["train"],
        fingerprint=trained.fingerprint,
        measured_on_these_weights=trained.record["model"]["fingerprint"] == lm.fingerprint,
        trained=_metrics(trained, "trained"),
        untrained=_metrics(trained, "untrained"),
    )


def _name(trained: Artefact) -> str:
    config = trained.sae.config
    return f"{config.model} layer {config.layer} {config.site}, {config.architecture}"


def _metrics(trained: Artefact, which: str) -> schema.SaeMetrics:
    measured = trained.evaluation[which]
    losses = trained.evaluation["loss"].values()

    def recovered(name: str) -> float | None:
        return float(np.mean([part[name][which] for part in losses])) if losses else None

    return schema.SaeMetrics(
        l0=measured["l0"],
        fvu=measured["fvu"]["raw"]["without_massive"],
        fvu_all=measured["fvu"]["raw"]["all"],
        dead_share=measured["dead_share"],
        loss_recovered=recovered("recovered"),
        loss_recovered_from_mean=recovered("recovered_from_mean"),
        n_tokens=measured["tokens"],
    )


def notes(settings: Study) -> list[str]:
    """Sentences that a reader of the numbers needs."""
    said = [
        "The paper's full text, code and category list were not available to us: this is a "
        "re-implementation of its pipeline that tests its qualitative findings, not a replication "
        "of its numbers.",
        f"“Outside” is the middle one of {settings.outside_draws} random draws of as many latents "
        "outside the space, matched in density.",
    ]
    if settings.thresholds == Thresholds():
        said.append(
            "The bars are older than the thresholds of the selection, which were chosen on words "
            "that no result is made of (experiments.choose_thresholds), after a run with stricter "
            "ones had missed some bars."
        )
    if len(settings.languages) < 2:
        said.append(
            f"This run studied {LANGUAGES[settings.languages[0]]} alone: no latents are shared, no "
            "regression is carried over, and the bars that need the other language are not "
            "measured."
        )
    if settings.judge is None and "en" in settings.languages:
        said.append(
            "No classifier judged the texts: give one the GoEmotions data with "
            "--set study.judge=FOLDER."
        )
    return said


def _sources(
    settings: Study,
    lm: LanguageModel,
    trained: Artefact,
    material: Mapping[schema.Language, Material],
) -> list[schema.Source]:
    read = [
        schema.Source(
            name=m.norms.name,
            role=f"{LANGUAGES[language]} ratings",
            licence=m.norms.source,
            url=m.norms.url,
            sha256=m.norms.sha256,
        )
        for language, m in material.items()
    ]
    read += [
        schema.Source(
            name=f"Concept-sets, {LANGUAGES[language]}",
            role=f"{LANGUAGES[language]} words of each emotion",
            licence="Apache-2.0" if settings.concepts(language) is None else "the user's own file",
            url=None,
            sha256=m.concepts.sha256,
        )
        for language, m in material.items()
    ]
    return [
        schema.Source(
            name=lm.name,
            role="language model",
            licence=_LICENCES.get(lm.name, "see the model's own files"),
            url=None,
            sha256=lm.fingerprint,
        ),
        schema.Source(
            name=_name(trained),
            role="sparse autoencoder",
            licence="Apache-2.0",
            url=None,
            sha256=trained.fingerprint,
        ),
        *read,
    ]


_LICENCES = {
    "gemma-3-270m": "Gemma Terms of Use: Gemma is provided under and subject to the Gemma Terms "
    "of Use found at ai.google.dev/gemma/terms",
    "smollm2-135m-instruct": "Apache-2.0",
}
