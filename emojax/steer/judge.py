"""A plain judge of a text's emotion: TF-IDF and logistic regression on GoEmotions, from a path.

It knows nothing of the language model, trains in well under a minute, and says how good it is:
its verdicts mean no more than its own test scores, which are always beside them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import Pipeline, make_pipeline

from emojax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Judge:
    """A trained classifier with its scores on texts that it has not seen.

    Attributes:
      labels: the emotions it tells apart.
      n_train: texts it learned from.
      n_test: texts it was scored on.
      accuracy: share of them that it labels as people did.
      macro_f1: mean F1 over the labels, rare ones counting as much as common ones.
    """

    pipeline: Pipeline
    labels: tuple[str, ...]
    n_train: int
    n_test: int
    accuracy: float
    macro_f1: float

    def verdicts(self, texts: Sequence[str]) -> list[str]:
        """The likeliest label of each text."""
        return [str(label) for label in self.pipeline.predict(list(texts))] if texts else []


def train(folder: Path, judged_as: Mapping[str, str], seed: int) -> Judge:
    """Trains on `goemo_train.tsv` and scores on `goemo_test.tsv` (Demszky et al. 2020).

    Only texts with exactly one label are used. Labels count alike however rare (balanced class
    weights).

    Args:
      folder: holds the two files (text <tab> comma-separated label ids <tab> id) and `labels.txt`
        (label names separated by white space, in the order of their ids).
      judged_as: GoEmotions label → the label to tell apart, itself or a group; texts with a label
        that is not there are left out.
      seed: of the solver.

    Raises:
      UserError: a file is missing or not in this form, or an emotion has no texts.
    """
    (texts, labels), (test_texts, test_labels) = read(folder, judged_as)
    pipeline = make_pipeline(
        TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=3),
        LogisticRegression(C=3.0, class_weight="balanced", max_iter=300, random_state=seed),
    )
    pipeline.fit(texts, labels)
    predicted = pipeline.predict(test_texts)
    return Judge(
        pipeline=pipeline,
        labels=tuple(sorted(set(labels))),
        n_train=len(texts),
        n_test=len(test_texts),
        accuracy=float(accuracy_score(test_labels, predicted)),
        macro_f1=float(f1_score(test_labels, predicted, average="macro")),
    )


def read(
    folder: Path, judged_as: Mapping[str, str]
) -> tuple[tuple[list[str], list[str]], tuple[list[str], list[str]]]:
    """The texts and labels to train on, and those to test on; arguments and errors as `train`."""
    names = _read(folder / "labels.txt").split()
    train_on, test_on = (
        _single_label(folder / name, names, judged_as)
        for name in ("goemo_train.tsv", "goemo_test.tsv")
    )
    return train_on, test_on


def _single_label(
    path: Path, names: Sequence[str], judged_as: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    texts, labels = [], []
    for number, line in enumerate(_read(path).rstrip("\n").split("\n"), 1):
        try:
            text, ids, _ = line.split("\t")
            named = [names[int(i)] for i in ids.split(",")]
        except (IndexError, ValueError):
            raise UserError(
                f"{path}, line {number}, is not a text, a tab and label ids below {len(names)}; "
                "give GoEmotions as published."
            ) from None
        if len(named) == 1 and named[0] in judged_as:
            texts.append(text)
            labels.append(judged_as[named[0]])
    missing = set(judged_as.values()) - set(labels)
    if missing:
        raise UserError(
            f"{path} has no text labelled {min(missing)} only; leave it out or give all of it."
        )
    return texts, labels


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); give the folder of GoEmotions' labels.txt, "
            "goemo_train.tsv and goemo_test.tsv, or leave the judge out."
        ) from None
