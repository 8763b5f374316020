import pytest

from emojax.errors import UserError
from emojax.steer import judge

SELF = {"joy": "joy", "fear": "fear"}


@pytest.fixture
def folder(tmp_path):
    """A made-up data set in GoEmotions' form, easy enough to learn."""
    (tmp_path / "labels.txt").write_text("joy\nfear\nneutral\n")
    lines = [
        f"{words} number{i}\t{label}\tid{i}\n"
        for i in range(6)
        for words, label in [
            ("what a happy day", "0"),
            ("run from the dark", "1"),
            ("it is noon", "2"),
            ("happy in the dark", "0,1"),
        ]
    ]
    for part in ("train", "test"):
        (tmp_path / f"goemo_{part}.tsv").write_text("".join(lines))
    return tmp_path


def test_the_judge_learns_and_reports_its_own_scores(folder):
    trained = judge.train(folder, SELF, seed=0)
    assert trained.labels == ("fear", "joy")
    assert (trained.n_train, trained.n_test) == (12, 12)  # neutral and two-label texts are left out
    assert (trained.accuracy, trained.macro_f1) == (1.0, 1.0)
    assert trained.verdicts(["a happy one", "the dark, run"]) == ["joy", "fear"]
    assert trained.verdicts([]) == []


def test_its_scores_are_those_of_the_test_file(folder):
    test = (folder / "goemo_test.tsv").read_text()
    swapped = test.replace("\t0\t", "\tx\t").replace("\t1\t", "\t0\t").replace("\tx\t", "\t1\t")
    (folder / "goemo_test.tsv").write_text(swapped)
    assert judge.train(folder, SELF, seed=0).accuracy == 0


def test_labels_can_be_grouped(folder):
    groups = {"joy": "pleasant", "fear": "unpleasant", "neutral": "neutral"}
    trained = judge.train(folder, groups, seed=0)
    assert trained.labels == ("neutral", "pleasant", "unpleasant")
    assert trained.n_train == 18


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("goemo_train.tsv", None, "goemo_train.tsv cannot be read"),
        ("goemo_test.tsv", b"\xff\xfe\x00", "goemo_test.tsv cannot be read"),
        ("goemo_train.tsv", b"a text\t0\tid\nno label\n", "line 2, is not a text"),
        ("goemo_train.tsv", b"a text\t9\tid\n", "line 1, is not a text"),
        ("goemo_train.tsv", b"a text\t0\tid\n", "no text labelled fear only"),
    ],
)
def test_data_in_another_form_is_refused(folder, file, content, problem):
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=problem):
        judge.train(folder, SELF, seed=0)
