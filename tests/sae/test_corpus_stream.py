"""Rows as they stream: shares, packing, hosts, held-out documents, going on where they stood."""

import dataclasses
import itertools
import json
import string
from itertools import islice
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from sae_toys import language_model, without_bos

from emojax.errors import UserError
from emojax.lm.text import tokenize
from emojax.sae import text_stream
from emojax.sae.corpus import DataConfig

DATA = DataConfig(
    tokens=20_000,
    heldout_tokens=1000,
    languages=("en",),
    weights=(1.0,),
    row_tokens=32,
    short_share=0.0,
    heldout_share=0.1,
)
MIX = dataclasses.replace(DATA, languages=("en", "zh"), weights=(0.7, 0.3), short_share=0.2)
BOS = 1
COMMIT = "c" * 40
LENGTHS = (5, 40, 900, 1, 300)


def texts(number: int = 400) -> list[str]:
    """Documents that begin with three letters of their own, a few words to many rows long."""
    rng = np.random.default_rng(3)
    letters = string.ascii_lowercase
    names = [letters[i // 676] + letters[i // 26 % 26] + letters[i % 26] for i in range(number)]
    words = ["glad", "sad.", "no", "we ran!", "it"]
    return [
        f"{name} " + " ".join(words[j] for j in rng.integers(0, 5, LENGTHS[i % len(LENGTHS)]))
        for i, name in enumerate(names)
    ]


TEXTS = texts()


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """The same documents as each kind of corpus."""
    folder = tmp_path_factory.mktemp("text")
    lines = [json.dumps({"text": text}) for text in TEXTS]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "shards").mkdir()
    for i in range(5):
        (folder / "shards" / f"{i}.jsonl").write_text("\n".join(lines[i::5]))
    parquet.write_table(pa.table({"text": TEXTS}), folder / "a.parquet", row_group_size=50)
    (folder / "a.txt").write_text("\n".join(f"{text}\n{text[::-1]}" for text in TEXTS * 3))
    (folder / "a.tsv").write_text("\n".join(text[:100] for text in TEXTS * 5))
    return {path.name: path for path in folder.iterdir()} | {"hub": Path("hf:some/posts")}


@pytest.fixture
def offline_hub(monkeypatch, places):
    """The hub's data set is a local file, read by the real `datasets`."""

    class Api:
        def dataset_info(self, name, revision):
            assert (name, revision) == ("some/posts", None)
            return type("Info", (), {"sha": COMMIT})

    def load(path, name, *, split, revision, streaming):
        assert (path, name, revision) == ("some/posts", None, COMMIT)
        files = [str(path) for path in sorted(places["shards"].iterdir())[:4]]
        return real("json", data_files=files, split=split, streaming=streaming)

    real = datasets.load_dataset
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load)


def start(lm, config, place, split="train", host=0, hosts=1) -> text_stream.Rows:
    return text_stream.rows(lm, config, [("en", place)], split, host, hosts)


def every_row(rows) -> list[text_stream.Row]:
    """Until the corpus has no more, or is read again."""
    found = []
    try:
        while not any(rows._ends):
            found.append(next(rows)[0])
    except UserError as error:
        assert "has no more heldout" in str(error)
        return found
    return found[:-1]


def names(lm, rows) -> list[str]:
    """The first three letters of each document that begins in the rows."""
    text = "".join("".join(lm.tokenizer.convert_ids_to_tokens(row)) for row in rows)
    known = {name[:3] for name in TEXTS}
    return [part[:3] for part in text.split("<bos>") if part[:3] in known and part[3:4] == " "]


KINDS = ("a.txt", "a.tsv", "a.jsonl", "shards", "a.parquet", "hub")


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hosts", [1, 2])
def test_going_on_gives_bit_equally_what_would_have_come(lm, places, kind, hosts):
    config = dataclasses.replace(DATA, short_share=0.2)
    rows = start(lm, config, places[kind], host=hosts - 1, hosts=hosts)
    states, seen = [], []
    for number in range(400):
        if number in (0, 1, 150, 399):  # long documents make many rows: these are within some
            states.append((number, json.dumps(rows.get_state())))
        seen.append(next(rows))
    after = [next(rows) for _ in range(100)]
    for number, state in states:
        again = start(lm, config, places[kind], host=hosts - 1, hosts=hosts)
        again.set_state(json.loads(state))
        assert list(islice(again, 500 - number)) == (seen + after)[number:]
        assert json.dumps(again.get_state()) == json.dumps(rows.get_state())


def test_packed_rows_are_full_and_every_row_and_document_begins_with_bos(lm, places):
    config = dataclasses.replace(DATA, heldout_share=1e-9)
    rows = every_row(start(lm, config, places["a.jsonl"]))
    assert {len(row) for row in rows} == {DATA.row_tokens}
    assert {row[0] for row in rows} == {BOS}
    # The same packing, plainly: one text of all documents, and BOS for each row's first token.
    together = [token for ids in tokenize(lm, TEXTS) for token in ids]
    width = DATA.row_tokens
    plain = [
        (BOS, *together[begin + 1 : begin + width])
        for begin in range(0, len(together) - width + 1, width)
    ]
    assert sorted(rows) == sorted(plain)


@pytest.mark.parametrize("packed", [True, False])
def test_a_model_without_bos_gets_rows_without(lm, places, packed):
    config = dataclasses.replace(DATA, packed=packed)
    ours, plain = (every_row(start(m, config, places["a.jsonl"])) for m in (lm, without_bos()))
    assert all(row[0] == BOS for row in ours)
    assert not any(BOS in row for row in plain)
    assert max(map(len, plain)) == DATA.row_tokens
    assert len(set(map(len, plain))) == 1 or not packed


def test_unpacked_rows_are_of_one_document_and_give_all_of_it(lm, places):
    config = dataclasses.replace(DATA, packed=False, heldout_share=1e-9)
    rows = every_row(start(lm, config, places["a.jsonl"]))
    assert {row[0] for row in rows} == {BOS}
    assert all(row.count(BOS) == 1 for row in rows)
    width = DATA.row_tokens - 1
    lengths = sorted(len(row) - 1 for row in rows)
    cuts = [range(0, len(text), width) for text in TEXTS]
    expected = [
        min(width, len(text) - i) for text, cut in zip(TEXTS, cuts, strict=True) for i in cut
    ]
    assert lengths == sorted(length for length in expected if length > 1)
    # A document's first row names it: each comes once.
    assert sorted(names(lm, rows)) == sorted(text[:3] for text in TEXTS)


def test_train_and_heldout_share_no_document(lm, places):
    config = dataclasses.replace(DATA, packed=False)
    train, held = (
        names(lm, every_row(start(lm, config, places["a.jsonl"], split)))
        for split in ("train", "heldout")
    )
    assert sorted(train + held) == sorted(text[:3] for text in TEXTS)
    assert len(held) / len(TEXTS) == pytest.approx(DATA.heldout_share, abs=0.05)


@pytest.mark.usefixtures("offline_hub")
@pytest.mark.parametrize("kind", ["a.jsonl", "shards", "a.parquet", "hub"])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_every_document_is_read_by_exactly_one_host(lm, places, kind, hosts):
    config = dataclasses.replace(DATA, packed=False, heldout_share=1e-9)
    parts = [
        names(lm, every_row(start(lm, config, places[kind], host=host, hosts=hosts)))
        for host in range(hosts)
    ]
    read = TEXTS if kind != "hub" else [t for i in range(4) for t in TEXTS[i::5]]
    assert sorted(itertools.chain(*parts)) == sorted(text[:3] for text in read)
    assert min(map(len, parts)) > 0


def test_the_order_follows_the_seed_and_is_not_the_files(lm, places):
    config = dataclasses.replace(DATA, packed=False)
    one, two = (list(islice(start(lm, config, places["shards"]), 300)) for _ in range(2))
    assert one == two
    other = dataclasses.replace(config, seed=1)
    assert list(islice(start(lm, other, places["shards"]), 300)) != one
    order = names(lm, [row for row, _ in one])
    assert order != sorted(order)


@pytest.mark.parametrize("packed", [True, False])
def test_shares_are_right_in_tokens_at_any_time(lm, places, packed):
    config = dataclasses.replace(MIX, packed=packed)
    corpora = [("en", places["a.jsonl"]), ("en", places["a.tsv"]), ("zh", places["shards"])]
    rows = text_stream.rows(lm, config, corpora, "train")
    tokens = np.zeros(2)
    for number, (row, language) in enumerate(islice(rows, 2000)):
        tokens[language] += sum(token != BOS and token != 0 for token in row)
        if number > 100:
            # Five pipelines, each less than a row off.
            off = np.abs(tokens - np.array(MIX.weights) * tokens.sum())
            assert off.max() <= 5 * config.row_tokens
    assert tokens[0] / tokens.sum() == pytest.approx(0.7, abs=0.005)


def test_special_tokens_in_a_text_do_not_count(lm, tmp_path):
    path = tmp_path / "a.jsonl"
    text = "<bos>" * 20 + "we ran home" * 200
    path.write_text("\n".join(json.dumps({"text": f"{text} {i}"}) for i in range(30)))
    rows = start(lm, DATA, path)
    seen = [next(rows)[0] for _ in range(200)]
    special = set(lm.tokenizer.all_special_ids)
    (spent,) = rows.get_state()["spent"]
    assert spent == sum(token not in special for row in seen for token in row)
    assert spent < sum(len(row) - 1 for row in seen)


def test_text_to_train_on_that_ends_is_read_again_from_its_beginning(lm, places, tmp_path, caplog):
    """Each corpus for itself, over and over; a state of any pass is gone on with."""
    small = tmp_path / "small.jsonl"
    small.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS[:30]))
    corpora = [("en", small), ("zh", places["a.parquet"])]
    config = dataclasses.replace(MIX, tokens=10**9, weights=(0.9, 0.1), short_share=0.0)

    def rows():
        return text_stream.rows(lm, config, corpora, "train")

    one, once = rows(), every_row(start(lm, DATA, small))
    caplog.clear()
    seen, states = [], []
    for _ in range(3 * len(once)):
        states.append(one.get_state())
        seen.append(next(one))
    english = [row for row, language in seen if language == 0]
    assert english[: len(once)] == once
    assert english[len(once) : 2 * len(once)] == once
    assert {len(ends) for ends in one.get_state()["ends"]} == {0, 2}
    assert caplog.text.count("small.jsonl gives") == 1
    assert "a.parquet" not in caplog.text
    # The text that began again has those of its first pass, the other one its share as yet.
    tokens = sum(token not in (0, BOS) for row in once for token in row)
    assert text_stream.distinct(one.get_state(), 1e9) == pytest.approx(tokens + 1e8, abs=0.1)
    assert text_stream.distinct(one.get_state(), 10.0) == pytest.approx(10)
    assert text_stream.distinct(rows().get_state(), 1e9) == pytest.approx(1e9)
    for place in (5, len(once) + 7, len(seen) - 60):
        again = rows()
        again.set_state(json.loads(json.dumps(states[place])))
        assert list(islice(again, 50)) == seen[place : place + 50]


@pytest.mark.parametrize("hosts", [1, 2])
def test_passes_are_over_the_same_text_and_then_it_goes_on(lm, places, hosts):
    config = dataclasses.replace(DATA, tokens=2000 * hosts)

    def rows(passes):
        corpora = [("en", places["a.jsonl"])]
        return text_stream.rows(lm, config, corpora, "train", hosts - 1, hosts, passes)

    thrice = rows(3)
    seen = [next(thrice) for _ in range(300)]
    (ends,) = thrice.get_state()["ends"]
    assert 2000 <= ends[0] < 2000 + config.row_tokens
    assert ends == [ends[0], 2 * ends[0]]
    plain = list(islice(rows(1), 300))
    of_pass = seen.index(plain[0], 1)
    assert seen == (2 * plain[:of_pass] + plain)[:300]


def test_text_that_ends_is_named_where_it_is_not_read_again(lm, places, tmp_path):
    with pytest.raises(UserError, match=r"a\.parquet has no more heldout text after [\d,]+ tokens"):
        list(start(lm, DATA, places["a.parquet"], "heldout"))
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "we ran"}))
    with pytest.raises(UserError, match=r"no more train text after 0 tokens on this host"):
        next(start(lm, DATA, tmp_path / "one.jsonl"))


def test_a_bad_line_far_in_a_corpus_is_named(lm, tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}) for text in TEXTS]
    for bad, said in (("{", "is no JSON"), ('{"body": "x"}', "has no text in a field 'text'")):
        path.write_text("\n".join([*lines[:200], bad, *lines[200:]]))
        rows = start(lm, DATA, path)
        next(rows)
        with pytest.raises(UserError, match=rf"Line 201 of the corpus {path} {said}"):
            list(rows)


def test_a_language_without_a_corpus_is_refused(lm, places):
    with pytest.raises(UserError, match="are in en but the config mixes en, zh"):
        start(lm, MIX, places["a.jsonl"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": dataclasses.replace(DATA, seed=1)}, r"data\.seed 0 .* with 1"),
        ({"hosts": 2}, "hosts 1 .* with 2"),
        ({"split": "heldout"}, "split train"),
        ({"place": "a.tsv"}, "corpora"),
    ],
)
def test_a_state_of_other_rows_is_refused(lm, places, change, said):
    state = start(lm, DATA, places["a.jsonl"]).get_state()
    arguments = {"config": DATA, "place": "a.jsonl"} | change
    rows = start(lm, **arguments | {"place": places[arguments["place"]]})
    with pytest.raises(UserError, match=said):
        rows.set_state(state)


def test_held_out_text_without_a_language_is_refused(lm, places):
    corpora = [("en", places["a.jsonl"]), ("zh", places["a.parquet"])]
    enough = text_stream.heldout(lm, MIX, corpora)
    assert set(enough.languages) == {0, 1}
    few = dataclasses.replace(MIX, heldout_tokens=1)
    with pytest.raises(UserError, match=r"ends before a row in zh; set data\.heldout_tokens"):
        text_stream.heldout(lm, few, corpora)
