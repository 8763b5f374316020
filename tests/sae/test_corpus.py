import dataclasses
import gzip
import json
from pathlib import Path

import pytest
from sae_toys import corpora, language_model, train_one, without_bos

from emojax import config as configs
from emojax.errors import UserError
from emojax.lm import sources
from emojax.sae import corpus
from emojax.sae.corpus import DataConfig

DATA = DataConfig(tokens=20_000, heldout_tokens=2000, row_tokens=32, heldout_share=0.1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return [corpus.read(*part) for part in corpora(tmp_path_factory.mktemp("text"))]


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def rows(lm, texts):
    return corpus.draw(lm, texts, DATA)


def spoken(lm, rows, keep) -> list[str]:
    return [
        "".join(lm.tokenizer.convert_ids_to_tokens(row[1:]))
        for row, language in zip(rows.tokens, rows.languages, strict=True)
        if keep(row, rows.names[language])
    ]


def test_languages_and_short_rows_have_their_shares(rows):
    train = rows["train"]
    of = {"en": 0, "zh": 0}
    short = 0
    for row, language in zip(train.tokens, train.languages, strict=True):
        of[train.names[language]] += len(row) - 1
        short += (len(row) - 1) * (len(row) < DATA.row_tokens)
    total = sum(of.values())
    assert DATA.tokens <= total <= DATA.tokens * 1.02
    assert of["en"] == pytest.approx(of["zh"], rel=0.02)
    assert short / total == pytest.approx(DATA.short_share, abs=0.03)


def test_every_row_begins_with_bos_and_is_no_longer_than_asked(lm, rows):
    for part in rows.values():
        assert all(row[0] == lm.tokenizer.bos_token_id for row in part.tokens)
        assert max(map(len, part.tokens)) == DATA.row_tokens


def test_a_model_without_bos_gets_rows_without(lm, texts, rows):
    plain = corpus.draw(without_bos(), texts, DATA)["train"]
    assert max(map(len, plain.tokens)) == DATA.row_tokens
    bos = lm.tokenizer.bos_token_id
    assert not any(bos in row for row in plain.tokens)
    assert sum(map(len, plain.tokens)) >= DATA.tokens


def test_rows_of_both_languages_and_lengths_are_mixed(rows):
    train = rows["train"]
    for language in (0, 1):
        places = [i for i, of in enumerate(train.languages) if of == language]
        assert places[0] < 20
        assert places[-1] > len(train.tokens) - 20


def test_short_english_rows_come_from_sentences_and_from_posts(lm, rows):
    short = spoken(lm, rows["train"], lambda row, name: name == "en" and len(row) < DATA.row_tokens)
    assert any(text[-1] in ".!?" for text in short)  # a sentence of the novel
    assert any(text[-1] not in ".!?" for text in short)  # a post, its number unknown to the toy


def test_documents_are_trained_on_or_held_out_never_both(texts):
    for number, text in enumerate(texts):
        out = corpus._heldout(len(text.documents), DATA, number)
        assert len(out) == len(text.documents)
        assert 0 < sum(out) / len(out) <= 0.5


def test_heldout_text_is_nowhere_in_the_training_rows(lm, tmp_path):
    lines = [f"{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}{i}." * 30 for i in range(4000)]
    (tmp_path / "unique.txt").write_text("\n".join(lines))
    letters = {str(i): letter for i, letter in enumerate("uvwxyzabcd")}
    text = "\n".join("".join(letters.get(c, c) for c in line) for line in lines)
    (tmp_path / "unique.txt").write_text(text)
    config = dataclasses.replace(DATA, languages=("en",), weights=(1.0,))
    drawn = corpus.draw(lm, [corpus.read("en", tmp_path / "unique.txt")], config)
    seen = {row[1:] for row in drawn["train"].tokens}
    assert not any(row[1:] in seen for row in drawn["heldout"].tokens)


def test_the_draw_follows_the_seed(lm, texts, rows):
    assert corpus.draw(lm, texts, DATA)["train"].digest == rows["train"].digest
    other = corpus.draw(lm, texts, dataclasses.replace(DATA, seed=1))
    assert other["train"].digest != rows["train"].digest


def test_too_little_text_is_refused(lm, texts):
    with pytest.raises(UserError, match="tokens less than"):
        corpus.draw(lm, texts, dataclasses.replace(DATA, tokens=50_000_000))


def test_languages_without_a_corpus_are_refused(lm, texts):
    with pytest.raises(UserError, match="are in en but the config mixes en, zh"):
        corpus.draw(lm, texts[:1], DATA)


@pytest.mark.parametrize(
    ("language", "content", "said"),
    [
        ("en", b'{"text": "one"}', "are in en but the config mixes en, zh"),
        ("zh", b"{", r"Line 1 of the corpus .*a\.jsonl is no JSON"),
    ],
)
def test_a_bad_corpus_is_refused_before_the_model_is_loaded(
    monkeypatch, tmp_path, language, content, said
):
    def load(*_, **__):
        pytest.fail("the model is loaded")

    monkeypatch.setattr(sources, "load", load)
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.txt").write_text("text")
    path = Path(__file__).parents[2] / "configs/gemma3_270m.py"
    out = {name: tmp_path / name for name in ("out", "artefact", "store_dir")}
    pair = [("en", tmp_path / "b.txt"), (language, tmp_path / "a.jsonl")]
    with pytest.raises(UserError, match=said):
        train_one(configs.load(path), pair, **out)


def test_of_lines_of_json_as_much_is_read_as_is_needed(lm, tmp_path):
    (tmp_path / "shards").mkdir()
    for name in ("a", "b"):
        lines = [json.dumps({"text": "a glad day. " * 80 + f"{name}{i}"}) for i in range(2000)]
        (tmp_path / "shards" / f"{name}.jsonl").write_text("\n".join(lines))
    config = dataclasses.replace(DATA, languages=("en",), weights=(1.0,))
    text = corpus.read("en", tmp_path / "shards")
    assert text.documents is None
    read = corpus._documents(text, 1.0, config)
    assert 100 < len(read) < 1000
    rows = corpus.draw(lm, [text], config)
    assert sum(len(row) - 1 for row in rows["train"].tokens) == pytest.approx(20_000, abs=70)
    (record,) = corpus.record([text])
    assert record["files"] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("name", ["a.txt", "a.tsv", "a.txt.gz"])
def test_what_is_only_looked_through_is_recorded_the_same_and_refused_the_same(tmp_path, name):
    """As streamed training does, which reads the text later."""
    text = "我很高兴\n".encode() * 5000
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    held, passed = corpus.read("zh", path), corpus.read("zh", path, hold=False)
    assert held.documents
    assert passed.documents is None
    assert corpus.record([passed]) == corpus.record([held])
    text += b"\xff"
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    with pytest.raises(UserError, match=r"is not UTF-8 \(line 5001, byte 0\)"):
        corpus.read("zh", path, hold=False)


def test_rows_that_need_not_be_full_keep_the_ends_of_pieces(lm, texts, rows):
    loose = corpus.draw(lm, texts, dataclasses.replace(DATA, packed=False, short_share=0.0))
    assert {len(row) for row in loose["train"].tokens} > {DATA.row_tokens}
    full = corpus.draw(lm, texts, dataclasses.replace(DATA, short_share=0.0))
    assert {len(row) for row in full["train"].tokens} == {DATA.row_tokens}


def test_parts_of_the_flag():
    assert corpus.parse_corpora("en=a.txt,en=b.tsv,zh=c.txt.gz") == (
        ("en", Path("a.txt")),
        ("en", Path("b.tsv")),
        ("zh", Path("c.txt.gz")),
    )
    for flag in ("", "a.txt", "en=", "=a.txt"):
        with pytest.raises(UserError, match="cannot be read"):
            corpus.parse_corpora(flag)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pdf", b"text", "neither .txt nor .tsv"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\n", "holds no text"),
        ("a.txt", "caf\xe9".encode("latin-1"), "not UTF-8"),
        ("a.txt.gz", gzip.compress(b"long enough to cut" * 99)[:-9], "cannot be read"),
        ("a.txt.gz", b"no gzip", "cannot be read"),
        ("missing.txt", None, "cannot be read"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        corpus.read("en", tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": (1.0,)},
        {"weights": (1.0, 0.0)},
        {"tokens": 0},
        {"short_share": 2.0},
        {"heldout_share": 0.0},
        {"weights": (1.0, float("nan"))},
        {"languages": ("en", "en")},
        {"seed": -1},
    ],
)
def test_impossible_mixes_are_refused(change):
    with pytest.raises(UserError):
        dataclasses.replace(DATA, **change)
