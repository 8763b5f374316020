"""What steering did to the text: is the emotion there, and is it still text?

No single number tells. A direction that is too strong may raise the rate of emotion words while
the text falls apart; repeating one character has a low perplexity (Jeong 2026, arXiv:2604.04064).
So fluency, repetition, emotion words and language stand side by side.
"""

import dataclasses
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from emojax.errors import UserError
from emojax.lm.batching import check_rows, pad, padded_length
from emojax.lm.loss import next_token_loss
from emojax.lm.model import LanguageModel
from emojax.steer.judge import Judge

_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % bootstrap interval (None with fewer than two groups to resample)."""

    value: float
    ci_low: float | None
    ci_high: float | None


@dataclasses.dataclass(frozen=True)
class Written:
    """A text that the model wrote.

    Attributes:
      prompt: index of its prompt.
      method: where its direction came from: "sae", "diffmean", "random", or "none" (unsteered).
      emotion: the intended emotion; None when unsteered.
      text: without the prompt.
      tokens: the text's token ids.
      perplexity: of those tokens under the unsteered model; None when there are none.
    """

    prompt: int
    method: str
    emotion: str | None
    text: str
    tokens: Sequence[int]
    perplexity: float | None


@dataclasses.dataclass(frozen=True)
class Continuation:
    """A text and what was measured on it; None is what does not apply or could not be measured.

    Attributes:
      perplexity_ratio: over the unsteered texts of the same prompt (geometric mean).
      distinct_2: distinct bigrams over bigrams, of tokens.
      repetition: share of token 4-grams that the text held before.
      emotion_words: those of the intended emotion's concept-set that the text holds.
      language_switch: mostly another script than its prompt's.
      judged: the judge's label.
      judged_intended: that label is the intended emotion.
    """

    prompt: int
    method: str
    emotion: str | None
    text: str
    perplexity: float | None
    perplexity_ratio: float | None
    distinct_2: float
    repetition: float
    emotion_words: list[str] | None
    language_switch: bool | None
    judged: str | None
    judged_intended: bool | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The continuations of one method in one language, averaged (the ratio geometrically)."""

    language: str
    method: str
    n_texts: int
    perplexity_ratio: Estimate
    distinct_2: Estimate
    repetition: Estimate
    emotion_word: Estimate | None
    language_switch: Estimate | None
    judged_intended: Estimate | None


def distinct_n(tokens: Sequence[int], n: int = 2) -> float:
    """Distinct n-grams over n-grams (Li et al. 2016, arXiv:1510.03055); 1 where there are none."""
    grams = _ngrams(tokens, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(tokens: Sequence[int], n: int = 4) -> float:
    """Share of n-grams that the same text held before; 0 where there are none."""
    return 1 - distinct_n(tokens, n)


def words_in(text: str, words: Iterable[str], language: str) -> list[str]:
    """Those of `words` that `text` holds: as whole words in English ("en"), anywhere in Chinese."""
    text = unicodedata.normalize("NFKC", text).casefold()
    pattern = r"\b{}\b" if language == "en" else "{}"
    return [word for word in words if re.search(pattern.format(re.escape(word.casefold())), text)]


def language_switch(text: str, language: str) -> bool | None:
    """Whether most letters of `text` are of another script than `language`'s; None: no letters.

    Chinese ("zh") is Han characters. English ("en") is Latin letters; another language in Latin
    letters is not noticed.
    """
    letters = [c for c in text if c.isalpha()]
    if not letters:
        return None
    if language == "zh":
        kept = sum(_CJK.match(c) is not None for c in letters)
    else:
        kept = sum("LATIN" in unicodedata.name(c, "") for c in letters)
    return kept / len(letters) < 0.5


def perplexities(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], written: Sequence[Sequence[int]]
) -> list[float | None]:
    """Perplexity, under the model as it is, of what was written after each prompt.

    Args:
      lm: the language model.
      prompts: token ids, at least one each.
      written: the token ids that follow.

    Returns:
      The exponential of the mean cross entropy per row; None where nothing was written.

    Raises:
      UserError: a prompt is empty, or a row is too long for the model.
    """
    rows = [[*prompt, *after] for prompt, after in zip(prompts, written, strict=True)]
    check_rows(lm.config, rows)
    tokens, mask = pad(rows, len(rows), padded_length(max(map(len, rows))))
    losses = np.asarray(next_token_loss(lm.config, lm.params, tokens, mask), np.float64)
    # Entry t is the loss of token t + 1.
    spans = [losses[i, len(p) - 1 : len(rows[i]) - 1] for i, p in enumerate(prompts)]
    return [float(np.exp(span.mean())) if span.size else None for span in spans]


def mean(values: Sequence[float | bool], groups: Sequence[object], seed: int) -> Estimate:
    """The mean over texts, and an interval from resampling whole groups.

    Texts that share an emotion (or a prompt) are not independent: resample what differs between
    repetitions of the experiment, not single texts.

    Args:
      values: one number, or yes or no, per text.
      groups: what each text belongs to, such as its emotion.
      seed: of the resampling (2,000 times).
    """
    return _bootstrap(np.asarray(values, float), groups, seed, lambda x: x)


def geometric_mean(values: Sequence[float], groups: Sequence[object], seed: int) -> Estimate:
    """As `mean`, for ratios: the exponential of the mean logarithm."""
    return _bootstrap(np.log(np.asarray(values, float)), groups, seed, math.exp)


def measure(
    texts: Sequence[Written],
    prompts: Sequence[tuple[str, str]],
    words: Mapping[str, Mapping[str, Sequence[str]]],
    judges: Mapping[str, Judge],
) -> list[Continuation]:
    """Measures every text, those of one prompt against its unsteered ones.

    Args:
      texts: what was written, unsteered texts (method "none") for every prompt among them.
      prompts: (language, text) each.
      words: language → emotion → its concept-set.
      judges: language → judge; a language without one is not judged.

    Raises:
      UserError: a prompt has no unsteered text to compare with.
    """
    plain: dict[int, list[float]] = {}
    for text in texts:
        if text.method == "none" and text.perplexity is not None:
            plain.setdefault(text.prompt, []).append(math.log(text.perplexity))
    verdicts = {
        language: judge.verdicts([text.text for text in texts])
        for language, judge in judges.items()
    }
    rows = []
    for index, text in enumerate(texts):
        language = prompts[text.prompt][0]
        if text.prompt not in plain:
            raise UserError(
                f"The prompt {prompts[text.prompt][1]!r} has no unsteered text; generate one too."
            )
        ratio = None
        if text.perplexity is not None:
            ratio = text.perplexity / math.exp(np.mean(plain[text.prompt]))
        judged = verdicts[language][index] if language in verdicts else None
        rows.append(
            Continuation(
                prompt=text.prompt,
                method=text.method,
                emotion=text.emotion,
                text=text.text,
                perplexity=text.perplexity,
                perplexity_ratio=ratio,
                distinct_2=distinct_n(text.tokens, 2),
                repetition=repetition(text.tokens),
                emotion_words=None
                if text.emotion is None
                else words_in(text.text, words[language][text.emotion], language),
                language_switch=language_switch(text.text, language),
                judged=judged,
                judged_intended=None if None in (judged, text.emotion) else judged == text.emotion,
            )
        )
    return rows


def summarise(
    rows: Sequence[Continuation],
    prompts: Sequence[tuple[str, str]],
    words: Mapping[str, Mapping[str, Sequence[str]]],
    seed: int,
) -> list[Summary]:
    """Averages the texts of each language and method; bootstrap intervals over emotions.

    An unsteered text was meant for no emotion, so it is scored against each in turn: that is the
    rate which steering has to beat. Its other intervals are over prompts.

    Args:
      rows: from `measure`, with the same `prompts` and `words`.
      prompts: (language, text) each.
      words: language → emotion → its concept-set.
      seed: of the bootstrap.
    """
    cells: dict[tuple[str, str], list[Continuation]] = {}
    for row in rows:
        cells.setdefault((prompts[row.prompt][0], row.method), []).append(row)
    return [
        _summary(language, method, cell, words[language], seed)
        for (language, method), cell in cells.items()
    ]


def _summary(
    language: str,
    method: str,
    rows: Sequence[Continuation],
    words: Mapping[str, Sequence[str]],
    seed: int,
) -> Summary:
    groups = [row.prompt if row.emotion is None else row.emotion for row in rows]

    def over(
        average: Callable[..., Estimate], values: Sequence[float | bool | None]
    ) -> Estimate | None:
        known = [(v, group) for v, group in zip(values, groups, strict=True) if v is not None]
        return average(*zip(*known, strict=True), seed) if known else None

    if method == "none":
        pairs = [(emotion, row) for emotion in words for row in rows]
        emotions = [emotion for emotion, _ in pairs]
        held = [bool(words_in(row.text, words[e], language)) for e, row in pairs]
        emotion_word = mean(held, emotions, seed)
        judged = None
        if all(row.judged is not None for row in rows):
            judged = mean([row.judged == emotion for emotion, row in pairs], emotions, seed)
    else:
        emotion_word = over(mean, [bool(row.emotion_words) for row in rows])
        judged = over(mean, [row.judged_intended for row in rows])
    ratio = over(geometric_mean, [row.perplexity_ratio for row in rows])
    if ratio is None:
        raise UserError(f"No {method} text in {language} has a token; generate at least one token.")
    return Summary(
        language=language,
        method=method,
        n_texts=len(rows),
        perplexity_ratio=ratio,
        distinct_2=mean([row.distinct_2 for row in rows], groups, seed),
        repetition=mean([row.repetition for row in rows], groups, seed),
        emotion_word=emotion_word,
        language_switch=over(mean, [row.language_switch for row in rows]),
        judged_intended=judged,
    )


def _bootstrap(
    values: Float[np.ndarray, " texts"],
    groups: Sequence[object],
    seed: int,
    back: Callable[[float], float],
) -> Estimate:
    if len(values) == 0 or len(values) != len(groups):
        raise UserError(f"{len(values)} values and {len(groups)} groups; give one group per value.")
    keys = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    index = np.array([keys[group] for group in groups])
    sums, counts = np.bincount(index, values), np.bincount(index)
    value = back(float(values.mean()))
    if len(keys) < 2:
        return Estimate(value, None, None)
    draws = np.random.default_rng(seed).integers(len(keys), size=(2000, len(keys)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(value, back(float(low)), back(float(high)))


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
