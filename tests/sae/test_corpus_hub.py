"""Data sets on the hub: read by the real `datasets`, from a server on this machine or files."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import hub_server
import huggingface_hub
import pytest
from huggingface_hub import constants
from sae_toys import language_model

from emojax.errors import UserError
from emojax.sae import corpus, documents, hub
from emojax.sae.corpus import DataConfig

COMMIT = "c" * 40
TEXTS = [
    f"we ran home, she sang. no sad man and a glad day {'abcdefgh'[i % 8]}" for i in range(400)
]


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list:
    """What the hub was asked for; it has one data set."""
    path = tmp_path / "posts.jsonl"
    path.write_text("\n".join(json.dumps({"id": i, "body": text}) for i, text in enumerate(TEXTS)))
    calls = []

    class Api:
        def dataset_info(self, name, revision):
            calls.append((name, revision))
            return type("Info", (), {"sha": COMMIT})

    def load(path_, name, *, split, revision, streaming):
        calls.append((path_, name, split, revision))
        return real("json", data_files=str(path), split=split, streaming=streaming)

    real = datasets.load_dataset
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


def test_a_data_set_is_found_at_its_commit(asked):
    source = corpus.find("en", Path("hf:some/posts/2024.en@main:train:body"))
    assert asked[0] == ("some/posts", "main")
    assert asked[1] == ("some/posts", "2024.en", "train", COMMIT)
    assert (source.field, source.identity) == ("body", COMMIT)


def test_its_documents_are_its_examples(asked):
    source = corpus.find("en", Path("hf:some/posts:train:body"))
    assert list(corpus.each_document(source)) == [(text,) for text in TEXTS]


def test_rows_are_drawn_from_as_much_as_is_needed_and_the_commit_is_recorded(asked):
    text = corpus.read("en", Path("hf:some/posts:train:body"))
    assert text.documents is None
    config = DataConfig(
        tokens=2000, heldout_tokens=200, languages=("en",), weights=(1.0,), row_tokens=16
    )
    config = dataclasses.replace(config, heldout_share=0.2)
    rows = corpus.draw(language_model(), [text], config)
    assert sum(len(row) - 1 for row in rows["train"].tokens) == pytest.approx(2000, abs=40)
    (record,) = corpus.record([text])
    assert record["file"] == "hf:some/posts:train:body"
    assert record["revision"] == COMMIT
    assert corpus.name(text.path) == record["file"]


def test_a_missing_column_and_what_is_no_text_name_the_columns(asked):
    for place in ("hf:some/posts", "hf:some/posts:train:id"):
        with pytest.raises(UserError, match=r"no text in a column .*\(it has id, body\)"):
            corpus.find("en", Path(place))


def test_a_split_that_is_not_there_is_refused(asked):
    with pytest.raises(UserError, match=r"could not be read from the hub .*Bad split: test"):
        corpus.find("en", Path("hf:some/posts:test:body"))


@pytest.mark.parametrize("place", ["hf:posts", "hf:", "hf:a/b/c/d", "hf:a/b@"])
def test_a_name_that_cannot_be_read_is_refused(place):
    with pytest.raises(UserError, match="write hf:owner/name"):
        corpus.find("en", Path(place))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"package datasets, which is missing; .*\[data\]"):
        corpus.find("en", Path("hf:some/posts"))


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"could not be read from the hub .*offline.*HF_TOKEN"):
        corpus.find("en", Path("hf:some/posts"))


# Where the hub is, is read from the environment at import: this runs as a process of its own.
PROGRAM = """
import json, sys
from pathlib import Path
from emojax.errors import UserError
from emojax.sae import corpus

def outcome(place):
    try:
        source = corpus.find("en", Path(place))
        return [source.identity, *corpus.each_document(source)]
    except UserError as error:
        return str(error)

print(json.dumps([outcome(place) for place in sys.argv[1:]]))
"""


def test_data_sets_are_streamed_from_a_server(tmp_path):
    data = "\n".join(json.dumps({"id": i, "body": text}) for i, text in enumerate(TEXTS)).encode()
    files = {"posts.jsonl": data, "README.md": b"# Posts"}
    repositories = dict.fromkeys(("datasets/some/posts", "datasets/some/gated"), files)
    repositories["datasets/some/script"] = files | {"script.py": b"raise SystemExit('ran')"}
    places = [
        "hf:some/posts:train:body",
        f"hf:some/posts@{hub_server.COMMIT}:train:body",
        "hf:some/absent:train:body",
        f"hf:some/posts@{COMMIT}:train:body",
        "hf:some/gated:train:body",
        "hf:some/script:train:body",
        "hf:some/posts:train:text",
    ]
    with hub_server.serve(hub_server.Hub(repositories, gated=("datasets/some/gated",))) as hub:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *places],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr  # the script would have ended it
    newest, pinned, *refused = json.loads(done.stdout.splitlines()[-1])
    absent, no_commit, gated, script, no_column = refused
    assert newest == pinned == [hub_server.COMMIT, *([text] for text in TEXTS)]
    start = "could not be read from the hub: "
    assert f"{start}there is none of that name" in absent
    assert f"{start}it has no such commit" in no_commit
    assert "could not be read from the hub" in gated and "gated" in gated
    assert "no text in a column 'text' (it has id, body)" in no_column
    assert "could not be read from the hub" in script and "scripts are no longer" in script
    assert not any("\n" in sentence for sentence in refused)


def test_a_hub_that_fails_on_the_way_is_one_sentence():
    source = documents.Source("en", Path("hf:some/posts"), "hub", "text", (), COMMIT)

    def examples():
        yield {"text": "one"}
        raise ConnectionError("the line is cut\nlong story")

    read = hub.documents(source, examples())
    assert next(read) == ("one",)
    with pytest.raises(UserError, match=r"hub \(the line is cut\); check"):
        next(read)
