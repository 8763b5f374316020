"""A study from beginning to end; each stage is kept, so that a rerun goes on from the last one.

Everything that can be wrong with the input is looked at before the model reads a word.
"""

import datetime
import functools
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from emojax import files
from emojax.emotion import concepts, controls, norms, ratings, space
from emojax.emotion.concepts import CATEGORIES, ConceptSet
from emojax.emotion.controls import Controls
from emojax.emotion.norms import Norms
from emojax.errors import UserError
from emojax.lm import sources, text
from emojax.lm.batching import check_rows
from emojax.lm.capture import Tap
from emojax.lm.model import LanguageModel
from emojax.report import results as schema
from emojax.report.results import Results
from emojax.sae import artefact
from emojax.sae.artefact import Artefact
from emojax.steer import judge
from emojax.study import analysis, bars, provenance, steering, words
from emojax.study.analysis import Coded, Material
from emojax.study.settings import Study


class Lists(NamedTuple):
    """The words of one language that a model is to read.

    Attributes:
      concepts: the concept words.
      controls: their control words.
      norms: the whole norm.
      tested: the words on which ratings are predicted.
    """

    concepts: ConceptSet
    controls: Controls
    norms: Norms
    tested: Norms

    @property
    def words(self) -> tuple[str, ...]:
        """All of them, each once."""
        return tuple(
            dict.fromkeys([*self.concepts.words, *self.controls.words, *self.tested.words])
        )


def study(settings: Study, output: Path, command: str) -> Results:
    """Runs a study and writes `results.json` and `report.html` into `output`.

    Args:
      settings: what to read, compare and write.
      output: the folder; what an earlier run left in its `cache` is used, not made again.
      command: the command that asked for it, for the record.

    Raises:
      UserError: an input is missing or bad, an emotion has too few features, or the folder is not
        writable. Earlier results stay as they are.
    """
    started = datetime.datetime.now(datetime.UTC)
    seconds: dict[str, float] = {}
    with _stage("check the input", seconds):
        _require_drawing()
        files.writable_dir(output)
        trained = artefact.load(settings.sae)
        if settings.judge is not None:
            judge.read(Path(settings.judge), {c: c for c in CATEGORIES})
        for language in settings.languages:
            check(settings, language)
    kept = output / "cache"

    with _stage("load the model", seconds):
        lm = sources.load(settings.model)
        artefact.check_fits(trained.sae.config, lm)
        if trained.sae.config.d_model != lm.config.d_model:
            raise UserError(
                f"The dictionary reads {trained.sae.config.site}, which is "
                f"{trained.sae.config.d_model} wide, and a study's directions are of the residual "
                f"stream, {lm.config.d_model} wide; set study.sae to a dictionary of such a site."
            )
        for language in settings.languages:
            check_text(settings, lm, language)
    with _stage("read words", seconds):
        material = {
            language: read(settings, lm, trained, language, kept) for language in settings.languages
        }
    with _stage("select features", seconds):
        found = analysis.select(settings, material)
        null = analysis.nulls(settings, material)
    with _stage("emotion spaces", seconds):
        drawn = analysis.spaces(settings, found, material)
        cross = analysis.across(settings, found, null, material)
    with _stage("predict ratings", seconds):
        rated, scatters, differences = analysis.compare(settings, found, null, material)
        few = analysis.few_latents(settings, material)
    with _stage("steer", seconds):
        steered = steering.steer(settings, lm, trained, found, material, output)

    results = Results(
        schema=schema.SCHEMA,
        run=provenance.run(settings, lm, trained, material, command, started, seconds),
        model=provenance.model(lm, trained),
        sae=provenance.sae(lm, trained),
        features=analysis.feature_table(found, null, material),
        ratings=rated,
        few_latents=few,
        differences=differences,
        scatters=scatters,
        spaces=drawn,
        cross_language=cross,
        steering=steered,
        bars=[],
        notes=provenance.notes(settings),
    )
    results["bars"] = bars.judge(results)
    # Here, since it needs the packages that `_require_drawing` asks for.
    from emojax.report import html

    schema.write(results, output / "results.json")
    html.write(results, output / "report.html")
    return results


@contextmanager
def _stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Says what is being done and keeps how long it took."""
    tqdm.write(f"· {name}")
    begun = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - begun, 2)


def _require_drawing() -> None:
    missing = [name for name in ("jinja2", "matplotlib") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(
            f"The report is made with {' and '.join(missing)}, which the base install leaves out; "
            "run: pip install 'emojax[demo]'."
        )


@functools.lru_cache
def lists(settings: Study, language: schema.Language, development: bool) -> Lists:
    """Draws the words of a language; the norm is read, or fetched, for it.

    Args:
      settings: the study.
      language: "en" or "zh".
      development: draw the tested words from those that are left when the study's own are taken
        away, so that what is chosen on them has not seen these.

    Raises:
      UserError: the concept-set or the norm cannot be read or fetched.
    """
    listed = settings.concepts(language)
    chosen = concepts.load(language) if listed is None else concepts.read(Path(listed), language)
    own = settings.norms(language)
    if own.path is not None:
        norm = norms.read(Path(own.path), language, own.word, own.valence, own.arousal)
    else:
        norm = norms.glasgow() if language == "en" else norms.cvaw()
    matched = controls.choose(chosen, settings.seed)
    aside = [*chosen.words, *matched.words]
    count = settings.reading.words_per_language
    tested = norms.for_test(norm, aside, count, settings.seed)
    if development:
        tested = norms.for_test(norm, [*aside, *tested.words], count, settings.seed)
    return Lists(chosen, matched, norm, tested)


def check(settings: Study, language: schema.Language) -> None:
    """Checks what can be checked of a language without the model.

    Raises:
      UserError: the concept-set or the norm cannot be read, or the norm has too few words or rates
        too few emotions.
    """
    drawn = lists(settings, language, False)
    ratings.check(drawn.tested, settings.folds)
    space.category_ratings(drawn.concepts, drawn.norms)


def check_text(settings: Study, lm: LanguageModel, language: schema.Language) -> None:
    """Checks what the model is to read and write, without running it.

    Raises:
      UserError: the tokenizer cannot represent a word, or a prompt is too long for the model.
    """
    text.check_words(lm, lists(settings, language, False).words)
    prompts = text.tokenize(lm, settings.prompts(language))
    check_rows(lm.config, prompts, settings.writing.max_new_tokens)


def read(
    settings: Study,
    lm: LanguageModel,
    trained: Artefact,
    language: schema.Language,
    kept: Path,
    *,
    development: bool = False,
) -> Material:
    """Puts one language's concept, control and rated words before the model.

    Args:
      settings: the study.
      lm: the language model.
      trained: the dictionary.
      language: "en" or "zh".
      kept: where residuals are kept.
      development: as `lists`.

    Raises:
      UserError: as `lists` and `words.read`.
    """
    drawn = lists(settings, language, development)
    place = Tap(trained.sae.config.layer, trained.sae.config.site)
    templates = settings.templates(language)
    readings = words.read(lm, place, drawn.words, templates, kept, f"words, {language}")
    coded = [
        _code(trained, words.part(readings, listed))
        for listed in (drawn.concepts.words, drawn.controls.words, drawn.tested.words)
    ]
    return Material(*drawn, *coded)


def _code(trained: Artefact, readings: words.Readings) -> Coded:
    return Coded(
        words=readings.words,
        trained=words.codes(trained.sae, readings),
        untrained=words.codes(trained.untrained, readings),
        dense=words.directions(readings),
        n_tokens=readings.n_tokens,
    )
