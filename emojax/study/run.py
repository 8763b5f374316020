"""A study from beginning to end; each stage is kept, so that a rerun goes on from the last one."""

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from emojax import files
from emojax.emotion import concepts, controls, norms
from emojax.emotion.norms import Norms
from emojax.lm import sources
from emojax.lm.capture import Tap
from emojax.lm.model import LanguageModel
from emojax.report import html
from emojax.report import results as schema
from emojax.report.results import Results
from emojax.sae import artefact
from emojax.sae.artefact import Artefact
from emojax.study import analysis, bars, provenance, steering, words
from emojax.study.analysis import Coded, Material
from emojax.study.settings import Study


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
    files.writable_dir(output)
    kept = output / "cache"
    seconds: dict[str, float] = {}

    with _stage("load the model", seconds):
        lm = sources.load(settings.model)
        trained = artefact.load(settings.sae, lm)
    with _stage("read words", seconds):
        material = {
            language: read(settings, lm, trained, language, kept) for language in analysis.LANGUAGES
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
        sae=provenance.sae(trained),
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
      settings: which words, and how they are read.
      lm: the language model.
      trained: the dictionary.
      language: "en" or "zh".
      kept: where residuals are kept.
      development: take, instead of the words on which ratings are predicted, rated words that are
        neither among them nor kin to them: for choices that no result may be made of.

    Raises:
      UserError: a norm cannot be read, a word not represented, or `kept` not written.
    """
    chosen = concepts.load(language)
    matched = controls.choose(chosen, settings.seed)
    norm = _norms(language)
    aside = [*chosen.words, *matched.words]
    count = settings.reading.words_per_language
    tested = norms.for_test(norm, aside, count, settings.seed)
    if development:
        tested = norms.for_test(norm, [*aside, *tested.words], count, settings.seed)
    templates = {"en": settings.reading.templates_en, "zh": settings.reading.templates_zh}
    place = Tap(trained.sae.config.layer, trained.sae.config.site)
    everything = list(dict.fromkeys([*aside, *tested.words]))
    readings = words.read(lm, place, everything, templates[language], kept, f"words, {language}")
    coded = [
        _code(trained, words.part(readings, listed))
        for listed in (chosen.words, matched.words, tested.words)
    ]
    return Material(chosen, matched, norm, tested, *coded)


def _norms(language: schema.Language) -> Norms:
    return norms.glasgow() if language == "en" else norms.cvaw()


def _code(trained: Artefact, readings: words.Readings) -> Coded:
    return Coded(
        words=readings.words,
        trained=words.codes(trained.sae, readings),
        untrained=words.codes(trained.untrained, readings),
        dense=words.directions(readings),
        n_tokens=readings.n_tokens,
    )
