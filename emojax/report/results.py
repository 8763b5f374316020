"""What one run measured: the schema of `results.json`, from which alone the report is made.

Plain JSON types only. Emotions are named in English everywhere (`"joy"`), languages are `"en"` and
`"zh"`, sites are those of `emojax.lm.capture`. A number that was not measured is None (JSON null),
never NaN. Correlations are Pearson's r unless their name says otherwise; intervals are 95 %.
"""

import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from emojax import files
from emojax.errors import UserError

SCHEMA = 2

Language = Literal["en", "zh"]
Target = Literal["valence", "arousal"]
# Where a continuation's direction comes from; "none" is the unsteered text.
Method = Literal["sae", "diffmean", "random", "none"]
# What the ridge regression sees. The first two are the finding, the others its baselines.
FeatureSet = Literal[
    "space",  # latents of the language's own emotion space
    "intersection",  # latents that are on both languages' lists of the same emotion
    "all_latents",  # the whole trained dictionary
    "outside",  # as many random latents outside the space; the middle one of several draws
    "untrained",  # the untrained dictionary, as many latents as "space" has
    "dense",  # the residual stream itself
    "length",  # word length, number of tokens and frequency
    "transfer",  # the shared latents, the regression trained on the other language's words
]


class Estimate(TypedDict):
    """A number with its 95 % interval (None where it was not computed)."""

    value: float
    ci_low: float | None
    ci_high: float | None


class Source(TypedDict):
    """A file that the run read, or a work it rests on."""

    name: str
    role: str  # "language model", "English ratings", …
    licence: str  # with the attribution or notice that it asks for
    url: str | None
    sha256: str | None


class Run(TypedDict):
    """What was run, on what, with what."""

    command: str
    started: str  # ISO 8601, UTC
    machine: str  # device, cores, memory, in words
    versions: dict[str, str]  # package → version
    seeds: dict[str, int]  # what it seeds → seed
    config: dict[str, Any]  # the frozen configuration, as JSON
    seconds: dict[str, float]  # stage → wall-clock seconds
    peak_memory_gib: float | None
    sources: list[Source]


class Model(TypedDict):
    """The language model and the tap whose activations everything else sees."""

    name: str
    architecture: str
    n_layers: int
    d_model: int
    vocab_size: int
    n_parameters: int
    layer: int
    site: str
    fingerprint: str


class SaeMetrics(TypedDict):
    """How well one dictionary explains held-out activations."""

    l0: float  # mean number of active latents per token
    fvu: float  # fraction of variance unexplained, massive-norm tokens left out
    fvu_all: float  # the same over all tokens
    dead_share: float  # share of latents that never fired on the held-out text
    # 1 = the model's own loss; 0 = its loss with the site set to zero, or to its mean activation.
    # Zeros are far from all that the site ever holds, so the second asks much more.
    loss_recovered: float | None
    loss_recovered_from_mean: float | None
    n_tokens: int  # held-out tokens


class Sae(TypedDict):
    """The sparse autoencoder, beside the untrained dictionary of the same size."""

    name: str
    n_latents: int
    k: int
    training_tokens: int
    fingerprint: str
    # Whether it was measured, when it was made, on the very weights that this run used.
    measured_on_these_weights: bool
    trained: SaeMetrics
    untrained: SaeMetrics


class Latent(TypedDict):
    """One latent selected for one emotion in one language."""

    latent: int
    effect: float  # AUROC of the emotion's concept words against matched control words
    specificity: float  # AUROC of them against the other emotions' concept words
    p: float  # permutation
    q: float  # Benjamini–Hochberg
    coverage: float  # share of the concept-set's words on which it is active
    density: float  # share of the control words on which it is active
    top_words: list[str]  # words with the highest activation, strongest first


class CategoryFeatures(TypedDict):
    """The latents of one emotion: each language's list, strongest first, and their intersection."""

    emotion: str
    name_zh: str
    en: list[Latent]
    zh: list[Latent]
    shared: list[int]


class Passing(TypedDict):
    """How many latents pass the selection for some emotion, and how many of its controls do."""

    language: Language
    trained: int
    untrained: int  # of the untrained dictionary, by the same rule
    shuffled: int  # of the trained one, the concept words dealt to the emotions at random


class ControlMatch(TypedDict):
    """How alike the concept words and their control words are; the gaps are of any emotion."""

    language: Language
    n_control_words: int  # different ones; most serve several emotions
    concept_length: float  # characters
    control_length: float
    largest_length_gap: float
    concept_zipf: float  # log10 of occurrences per billion words
    control_zipf: float
    largest_zipf_gap: float


class Features(TypedDict):
    """How latents were selected, and which."""

    rule: dict[str, float | int | str]  # threshold → value, as configured
    words_per_category: dict[str, float]  # language → mean size of its concept-sets
    control_words: list[ControlMatch]
    passing: list[Passing]
    categories: list[CategoryFeatures]


class Null(TypedDict):
    """The correlation's distribution under permuted ratings."""

    mean: float
    high: float  # 95th percentile
    p: float
    n_permutations: int


class Rating(TypedDict):
    """Human means against out-of-fold predictions of nested ridge regression."""

    language: Language
    target: Target
    feature_set: FeatureSet
    n_features: int
    n_words: int
    r: float
    ci_low: float
    ci_high: float
    r2: float
    null: Null | None


class FewLatents(TypedDict):
    """Ratings predicted from the few latents that correlate most with the training words' ratings.

    The fairest contest of two dictionaries: it does not depend on the concept-sets.
    """

    language: Language
    target: Target
    dictionary: Literal["trained", "untrained"]
    n_latents: int
    r: float
    ci_low: float
    ci_high: float


class Difference(TypedDict):
    """How much better one feature set is than another on the same words; paired bootstrap."""

    language: Language
    target: Target
    one: FeatureSet
    other: FeatureSet
    r: float  # r of `one` minus r of `other`
    ci_low: float
    ci_high: float


class Scatter(TypedDict):
    """The words behind one `Rating`; equal lengths, human and predicted on the norm's scale."""

    language: Language
    target: Target
    feature_set: FeatureSet
    words: list[str]
    human: list[float]
    predicted: list[float]


class ComponentCorrelation(TypedDict):
    """One principal component of the emotion space against the categories' human ratings."""

    component: int  # 1 = PC1
    target: Target
    r: float
    ci_low: float
    ci_high: float
    p: float  # permutation of the categories; of the largest |r| of all components


class Recovered(TypedDict):
    """Held-out recovery of the categories' human ratings from several components together."""

    target: Target
    r: float
    ci_low: float
    ci_high: float
    p: float  # permutation of the categories


class Space(TypedDict):
    """The emotion space of one language. Lists over categories are in the order of `emotions`."""

    language: Language
    n_latents: int
    emotions: list[str]
    coords: list[list[float]]  # [categories][components], PC1 first
    explained_variance: list[float]  # share per component, of the total
    valence: list[float | None]  # human mean of the category's words, on the norm's scale
    arousal: list[float | None]
    ratings_scale: str  # "Glasgow norms, 1–9"
    correlations: list[ComponentCorrelation]
    recovered: list[Recovered]
    rdm: list[list[float]]  # [categories][categories] dissimilarity, zero diagonal
    rdm_measure: str  # "1 − Pearson r"


class GeometryControl(TypedDict):
    """The agreement of the two languages' dissimilarity matrices in another form of the words."""

    of: Literal["dense", "untrained"]  # the residual stream; as many untrained latents
    rdm_spearman: Estimate
    rdm_p: float


class CrossLanguage(TypedDict):
    """How far the two languages' emotion spaces agree."""

    rdm_spearman: Estimate  # between the two matrices' upper triangles
    rdm_p: float  # permutation of the categories
    jaccard_mean: float  # shared latents over the union, mean over the categories
    jaccard_null: float  # the same with one language's categories shuffled
    jaccard_p: float
    n_shared: int  # latents that are in both spaces, be it for different emotions
    controls: list[GeometryControl]


class Prompt(TypedDict):
    """What a continuation goes on from."""

    language: Language
    text: str


class Vector(TypedDict):
    """One emotion's steering vector."""

    emotion: str
    n_latents: int
    fingerprint: str
    promoted_tokens: list[str]  # the logit lens' highest, strongest first


class Continuation(TypedDict):
    """One text that the model wrote, and what was measured on it."""

    prompt: int  # index into `prompts`
    method: Method
    emotion: str | None  # None when unsteered; otherwise the intended emotion
    text: str  # without the prompt
    perplexity: float | None  # of the text after its prompt, under the unsteered model
    # Over the geometric mean of those of the same prompt's unsteered texts.
    perplexity_ratio: float | None
    distinct_2: float  # distinct bigrams over bigrams
    repetition: float  # share of 4-grams seen before in the same text
    emotion_words: list[str] | None  # words of the intended emotion's concept-set in the text
    language_switch: bool | None  # mostly another script than its prompt's
    judged: str | None  # the judge's label
    judged_intended: bool | None


class SteeringEstimate(Estimate):
    """A mean over texts."""

    covers: str  # what the interval resampled, in words; empty where there is none


class SteeringSummary(TypedDict):
    """The continuations of one method in one language, averaged; bootstrap intervals."""

    language: Language
    method: Method
    n_texts: int
    perplexity_ratio: SteeringEstimate  # geometric mean; 1 by definition when unsteered
    distinct_2: SteeringEstimate
    repetition: SteeringEstimate
    # Share with a word of the intended emotion's concept-set. Unsteered texts are scored against
    # every emotion: the rate that steering has to beat.
    emotion_word: SteeringEstimate | None
    # That share minus the unsteered texts' of the same prompts; None for those.
    emotion_word_gain: SteeringEstimate | None
    language_switch: SteeringEstimate | None
    judged_intended: SteeringEstimate | None


class Judge(TypedDict):
    """The classifier behind `judged`, with its own test scores."""

    name: str
    language: Language
    trained_on: str
    n_labels: int
    n_train: int
    n_test: int
    accuracy: float
    macro_f1: float


class Steering(TypedDict):
    """Texts written with each emotion's vector added, beside the unsteered text."""

    layer: int
    site: str
    strength: float
    unit: str  # "residual-norm fraction"
    settings: dict[str, float | int]  # of generation: temperature, max_new_tokens, …
    prompts: list[Prompt]
    vectors: list[Vector]
    rows: list[Continuation]
    summary: list[SteeringSummary]
    judges: list[Judge]  # empty when no labelled texts were given


class Bar(TypedDict):
    """A number that was asked for before it was measured. Make it with `bar`."""

    name: str
    statement: str  # what is claimed, in one sentence
    relation: Literal["≥", "≤"]
    bar: float
    value: float | None
    met: bool | None  # None: not measured


class Results(TypedDict):
    """Everything that one run measured."""

    schema: int
    run: Run
    model: Model
    sae: Sae
    features: Features
    ratings: list[Rating]
    few_latents: list[FewLatents]
    differences: list[Difference]
    scatters: list[Scatter]
    spaces: list[Space]
    cross_language: CrossLanguage | None
    steering: Steering | None
    bars: list[Bar]
    notes: NotRequired[list[str]]  # sentences for the reader, such as what was left out and why


def bar(
    name: str, statement: str, relation: Literal["≥", "≤"], threshold: float, value: float | None
) -> Bar:
    """A bar and whether `value` meets it (None: not measured)."""
    met = None
    if value is not None:
        met = bool(value >= threshold if relation == "≥" else value <= threshold)
    return Bar(
        name=name, statement=statement, relation=relation, bar=threshold, value=value, met=met
    )


def check(results: object) -> Results:
    """The same object, known to have every field with the type that `Results` gives it.

    Raises:
      UserError: a field is missing, unknown or of another type; the message names the first.
    """
    _check(results, Results, "results")
    found = typing.cast(Results, results)
    if found["schema"] != SCHEMA:
        raise UserError(
            f"The results have schema {found['schema']} and this emojax reads {SCHEMA}; "
            "run the experiment again to make them anew."
        )
    return found


def write(results: Results, path: Path) -> None:
    """Writes `results.json`, whole or not at all.

    Raises:
      UserError: a field does not fit the schema, a number is NaN or infinite, or the disk is full.
    """
    text = json.dumps(check(results), ensure_ascii=False, indent=1, allow_nan=False)
    with files.atomic(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> Results:
    """Reads what `write` wrote.

    Raises:
      UserError: there is no such file, it is not JSON, or a field does not fit the schema.
    """
    try:
        return check(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"The results {path} cannot be read ({error}); run the experiment again."
        ) from None


def _check(value: object, kind: Any, where: str) -> None:
    """Compares `value` with the type `kind`: as much of `typing` as this file uses."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is NotRequired:
        _check(value, arguments[0], where)
    elif typing.is_typeddict(kind):
        fields = typing.get_type_hints(kind, include_extras=True)
        given = value if isinstance(value, dict) else {}
        missing = kind.__required_keys__ - given.keys()
        unknown = given.keys() - fields.keys()
        if missing or unknown or not isinstance(value, dict):
            name = min(map(str, missing or unknown or {kind.__name__}))
            what = "is not known" if unknown and not missing else "is missing"
            raise UserError(f"{where}.{name} {what}; make the results fit {kind.__name__}.")
        for name, field in value.items():
            _check(field, fields[name], f"{where}.{name}")
    elif origin is list and isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, arguments[0], f"{where}[{index}]")
    elif origin is dict and isinstance(value, dict):
        for key, item in value.items():
            _check(item, arguments[1], f"{where}.{key}")
    elif not _fits(value, kind, origin, arguments):
        shown = kind if isinstance(kind, types.UnionType) or origin else kind.__name__
        raise UserError(f"{where} is {value!r:.80}; give it the type {shown}.")


def _fits(value: object, kind: Any, origin: Any, arguments: tuple[Any, ...]) -> bool:
    if kind is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            try:
                _check(value, option, "")
            except UserError:
                continue
            return True
        return False
    if kind is float:  # JSON does not tell 1 from 1.0, and has no NaN
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return origin is None and isinstance(value, kind)
