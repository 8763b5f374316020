"""Emotion features → vectors → text: all emotions and the unsteered texts in one batch."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from emojax import files
from emojax.emotion.concepts import CATEGORIES
from emojax.emotion.features import EmotionFeatures
from emojax.lm import text
from emojax.lm.generate import GenerateSettings, generate
from emojax.lm.model import LanguageModel
from emojax.report import results as schema
from emojax.sae.artefact import Artefact
from emojax.steer import evaluate, judge, vectors
from emojax.steer.evaluate import Written
from emojax.steer.judge import Judge
from emojax.steer.vectors import SteeringVector
from emojax.study.analysis import Material
from emojax.study.settings import Study

VECTORS = "steering.safetensors"
_PROMOTED = 8  # tokens shown per vector
_LAYOUT = 3  # of the kept texts: change it whenever the same settings make other texts or fields


def steer(
    study: Study,
    lm: LanguageModel,
    trained: Artefact,
    found: EmotionFeatures,
    material: Mapping[schema.Language, Material],
    output: Path,
) -> schema.Steering:
    """Writes every prompt with every emotion, and measures what came of it.

    Leaves every method's vectors in `steering.safetensors` in the folder `output`
    (`emojax.steer.vectors.load` reads them); its `cache` keeps texts, prompt by prompt.

    Raises:
      UserError: an emotion has no latents, there are no unsteered texts to compare with, the
        judge's data cannot be read, or the disk is full.
    """
    writing = study.writing
    prompts = [(str(language), p) for language in material for p in study.prompts(language)]
    methods = make_vectors(study, lm, trained, found, material)
    texts = [
        written
        for index, (_, prompt) in enumerate(tqdm(prompts, "steer", unit="prompt"))
        for written in _write(study, lm, methods, index, prompt, output / "cache")
    ]
    words = {
        str(language): {category: m.concepts.of(category) for category in CATEGORIES}
        for language, m in material.items()
    }
    judges = _judges(study)
    rows = evaluate.measure(texts, prompts, words, judges)
    summaries = evaluate.summarise(rows, prompts, words, study.seed)
    vectors.save([vector for each in methods.values() for vector in each], output / VECTORS)
    return schema.Steering(
        layer=trained.sae.config.layer,
        site=trained.sae.config.site,
        strength=writing.strength,
        unit=vectors.UNIT,
        settings={
            "max_new_tokens": writing.max_new_tokens,
            "temperature": writing.temperature,
            "top_p": writing.top_p,
            "unsteered_texts_per_prompt": writing.unsteered,
        },
        prompts=[schema.Prompt(language=language, text=p) for language, p in prompts],  # type: ignore[typeddict-item]
        vectors=[
            schema.Vector(
                emotion=vector.emotion,
                n_latents=len(vector.source.latents),
                fingerprint=vector.fingerprint,
                promoted_tokens=tokens,
            )
            for vector, tokens in zip(
                methods["sae"], vectors.promoted_tokens(lm, methods["sae"], _PROMOTED), strict=True
            )
        ],
        rows=[dataclasses.asdict(row) for row in rows],  # type: ignore[typeddict-item]
        summary=[dataclasses.asdict(summary) for summary in summaries],  # type: ignore[typeddict-item]
        judges=[_described(language, j) for language, j in judges.items()],
    )


def make_vectors(
    study: Study,
    lm: LanguageModel,
    trained: Artefact,
    found: EmotionFeatures,
    material: Mapping[schema.Language, Material],
) -> dict[str, list[SteeringVector]]:
    """A vector per emotion by each method: latents, difference of means, chance.

    An emotion's latents are those on its list of any language, each weighted with its mean
    activation on the emotion's concept words of all languages.
    """
    place = (trained.sae.config.layer, trained.sae.config.site)
    latents: dict[str, dict[int, float]] = {}
    concepts: dict[str, np.ndarray] = {}
    controls: dict[str, np.ndarray] = {}
    for index, category in enumerate(CATEGORIES):
        listed = np.unique(np.concatenate([found.read(lang)[index] for lang in material]))
        own = [m.concepts.labels == index for m in material.values()]
        codes = [m.concept.trained[mine] for m, mine in zip(material.values(), own, strict=True)]
        weights = np.mean([c[:, listed].mean(axis=0) for c in codes], axis=0)
        latents[category] = {int(j): float(w) for j, w in zip(listed, weights, strict=True)}
        concepts[category] = np.concatenate(
            [m.concept.dense[mine] for m, mine in zip(material.values(), own, strict=True)]
        )
        controls[category] = np.concatenate(
            [m.control.dense[m.controls.matched[index]] for m in material.values()]
        )
    w_dec = np.asarray(trained.sae.w_dec)
    return {
        "sae": vectors.from_latents(w_dec, latents, *place, trained.fingerprint),
        "diffmean": vectors.diff_mean(concepts, controls, *place, lm.fingerprint),
        "random": vectors.random_directions(CATEGORIES, lm.config.d_model, *place, study.seed),
    }


def _write(
    study: Study,
    lm: LanguageModel,
    methods: Mapping[str, Sequence[SteeringVector]],
    index: int,
    prompt: str,
    kept: Path,
) -> list[Written]:
    """One prompt: the unsteered texts and every method's vectors, in one batch of rows."""
    writing = study.writing
    chosen: list[tuple[str, SteeringVector | None]] = [("none", None)] * writing.unsteered
    chosen += [(method, vector) for method, each in methods.items() for vector in each]
    path = kept / f"texts-{_key(study, lm, index, prompt, chosen)}.json"
    found = _read(path, index, chosen)
    if found is not None:
        return found
    settings = GenerateSettings(
        max_new_tokens=writing.max_new_tokens,
        temperature=writing.temperature,
        top_p=writing.top_p,
    )
    row = text.tokenize(lm, [prompt])[0]
    # The prompt is read as it is, but for its last token, where the text begins.
    push = vectors.stack([vector for _, vector in chosen], writing.strength, start=len(row) - 1)
    # Each unsteered text has a seed of its own. The emotions draw from these in turn, every method
    # alike: a steered text differs from its unsteered one, and from those of the other methods, by
    # what steers it alone, and no one seed is behind all that is compared.
    own = np.random.SeedSequence([study.seed, index]).generate_state(writing.unsteered).tolist()
    seeds = own + [own[i % len(own)] for each in methods.values() for i in range(len(each))]
    written = generate(lm, [row] * len(chosen), settings, [push], seeds)
    perplexity = evaluate.perplexities(lm, [row] * len(chosen), written.tokens)
    texts = [
        Written(
            prompt=index,
            method=method,
            emotion=None if vector is None else vector.emotion,
            text=written.texts[i],
            tokens=written.tokens[i],
            perplexity=perplexity[i],
        )
        for i, (method, vector) in enumerate(chosen)
    ]
    content = json.dumps([dataclasses.asdict(t) for t in texts], ensure_ascii=False).encode()
    files.require_room(files.writable_dir(kept), len(content))
    with files.atomic(path) as partial:
        partial.write_bytes(content)
    return texts


def _read(
    path: Path, index: int, chosen: Sequence[tuple[str, SteeringVector | None]]
) -> list[Written] | None:
    """The texts that were kept; None if there are none, or the file is damaged."""
    try:
        texts = [Written(**fields) for fields in json.loads(path.read_bytes())]
    except (OSError, TypeError, ValueError):
        return None
    wanted = [(index, method, v if v is None else v.emotion) for method, v in chosen]
    return texts if [(t.prompt, t.method, t.emotion) for t in texts] == wanted else None


def _key(
    study: Study,
    lm: LanguageModel,
    index: int,
    prompt: str,
    chosen: Sequence[tuple[str, SteeringVector | None]],
) -> str:
    """A hash of all that the texts depend on; another prompt's wording is not among it."""
    writing = dataclasses.replace(study.writing, prompts_en=(), prompts_zh=())
    parts: tuple[Any, ...] = (_LAYOUT, lm.fingerprint, writing, study.seed, index, prompt)
    parts += tuple(None if vector is None else vector.fingerprint for _, vector in chosen)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _judges(study: Study) -> dict[str, Judge]:
    """The English judge, when its data was given."""
    if study.judge is None:
        return {}
    return {"en": judge.train(Path(study.judge), {c: c for c in CATEGORIES}, study.seed)}


def _described(language: str, trained: Judge) -> schema.Judge:
    return schema.Judge(
        name="TF-IDF + logistic regression",
        language=language,  # type: ignore[typeddict-item]
        trained_on="GoEmotions (Demszky et al. 2020)",
        n_labels=len(trained.labels),
        n_train=trained.n_train,
        n_test=trained.n_test,
        accuracy=trained.accuracy,
        macro_f1=trained.macro_f1,
    )
