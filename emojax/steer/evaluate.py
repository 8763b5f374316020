"""What steering did to the text: is the emotion there, and is it still text?

No single number tells. A direction that is too strong may raise the rate of emotion words while
the text falls apart; repeating one character has a low perplexity (Jeong 2026, arXiv:2604.04064).
So fluency, repetition, emotion words and language stand side by side.
"""

import dataclasses
import functools
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
from emojax.steer import bootstrap
from emojax.steer.bootstrap import Estimate
from emojax.steer.judge import Judge

_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


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
      perplexity_ratio: over the geometric mean of the unsteered texts of the same prompt: exp(log
        perplexity - their mean log perplexity), so that one degenerate text among them counts as
        one of several, and not by how small its perplexity is.
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
    """The continuations of one method in one language, averaged.

    Attributes:
      n_texts: how many.
      perplexity_ratio: geometric mean over the texts of `Continuation.perplexity_ratio`; 1 by
        definition, without interval, where nothing steers.
      distinct_2: mean.
      repetition: mean.
      emotion_word: share of texts with a word of the intended emotion's concept-set. An unsteered
        text is meant for no emotion and is scored against each in turn.
      emotion_word_gain: that share minus the unsteered texts' of the same prompts and emotions;
        None where nothing steers.
      language_switch: share of the texts that have letters.
      judged_intended: share that the judge labels as intended, unsteered texts again scored against
        each emotion.
    """

    language: str
    method: str
    n_texts: int
    perplexity_ratio: Estimate
    distinct_2: Estimate
    repetition: Estimate
    emotion_word: Estimate
    emotion_word_gain: Estimate | None
    language_switch: Estimate | None
    judged_intended: Estimate | None


# A number for one text, as a text meant for an emotion (or for none).
_Measure = Callable[[Continuation, str | None], float | bool | None]


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
    if language != "en":
        return [word for word in words if word.casefold() in text]
    return [word for word in words if _whole(word.casefold()).search(text)]


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
    """Averages the texts of each language and method; intervals by `emojax.steer.bootstrap`.

    Args:
      rows: from `measure`, with the same `prompts` and `words`.
      prompts: (language, text) each.
      words: language → emotion → its concept-set.
      seed: of the bootstrap.

    Raises:
      UserError: no text of a language and method has a token.
    """
    cells: dict[tuple[str, str], list[Continuation]] = {}
    for row in rows:
        cells.setdefault((prompts[row.prompt][0], row.method), []).append(row)
    return [
        _summary(language, method, cell, cells[language, "none"], words[language], seed)
        for (language, method), cell in cells.items()
    ]


def _summary(
    language: str,
    method: str,
    rows: Sequence[Continuation],
    plain: Sequence[Continuation],
    words: Mapping[str, Sequence[str]],
    seed: int,
) -> Summary:
    emotions = list(words)
    table = functools.partial(_table, prompts=list(dict.fromkeys(row.prompt for row in plain)))

    def held(row: Continuation, emotion: str | None) -> bool:
        return emotion is not None and bool(words_in(row.text, words[emotion], language))

    def judged(row: Continuation, emotion: str | None) -> bool | None:
        return None if row.judged is None else row.judged == emotion

    def over(measure: _Measure, each: Sequence[str | None]) -> Estimate | None:
        values = table(rows, each, measure)
        return None if np.isnan(values).all() else bootstrap.mean(values, seed)

    if all(row.perplexity is None for row in rows):
        raise UserError(f"No {method} text in {language} has a token; generate at least one token.")
    if method == "none":
        own, ratio, gain = [None], Estimate(1.0, None, None, ""), None
    else:
        own, usual = emotions, table(plain, [None], _log_perplexity)
        ratio = bootstrap.mean(table(rows, own, _log_perplexity), seed, usual, math.exp)
        gain = bootstrap.mean(table(rows, own, held), seed, table(plain, own, held))
    return Summary(
        language=language,
        method=method,
        n_texts=len(rows),
        perplexity_ratio=ratio,
        distinct_2=bootstrap.mean(table(rows, own, lambda row, _: row.distinct_2), seed),
        repetition=bootstrap.mean(table(rows, own, lambda row, _: row.repetition), seed),
        emotion_word=bootstrap.mean(table(rows, emotions, held), seed),
        emotion_word_gain=gain,
        language_switch=over(lambda row, _: row.language_switch, own),
        judged_intended=over(judged, emotions),
    )


def _log_perplexity(row: Continuation, _: str | None) -> float | None:
    return None if row.perplexity is None else math.log(row.perplexity)


def _table(
    rows: Sequence[Continuation],
    emotions: Sequence[str | None],
    measure: _Measure,
    prompts: Sequence[int],
) -> Float[np.ndarray, "prompts texts emotions"]:
    """`measure` of every text, unsteered ones for each of `emotions`; NaN where there is none."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        for index, emotion in enumerate(emotions):
            if row.emotion in (None, emotion):
                value = measure(row, emotion)
                cell = found.setdefault((prompts.index(row.prompt), index), [])
                cell.append(math.nan if value is None else float(value))
    table = np.full((len(prompts), max(map(len, found.values())), len(emotions)), np.nan)
    for (prompt, emotion), values in found.items():
        table[prompt, : len(values), emotion] = values
    return table


@functools.cache
def _whole(word: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(word)}\b")


def _ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
