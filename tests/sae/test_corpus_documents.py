"""Files of every kind → documents, and what is wrong with a file, in one sentence."""

import gzip
import json
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from emojax.errors import UserError
from emojax.sae import documents

TEXTS = [f"Text number {i}.\nIts second line." for i in range(40)]


def jsonl(texts=TEXTS, field="text") -> bytes:
    return "\n".join(json.dumps({"id": i, field: text}) for i, text in enumerate(texts)).encode()


def write_parquet(path, texts=TEXTS, column="text", rows=7):
    parquet.write_table(
        pa.table({"id": range(len(texts)), column: texts}), path, row_group_size=rows
    )
    return path


def test_text_is_cut_into_pieces_of_whole_lines_and_16_of_them_are_a_document(tmp_path):
    lines = [f"line {i} " + "x" * 90 for i in range(2000)]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    plain, packed = (
        list(documents.each_document(documents.find("en", tmp_path / name)))
        for name in ("a.txt", "a.txt.gz")
    )
    assert plain == packed
    assert [len(document) for document in plain[:-1]] == [16] * (len(plain) - 1)
    pieces = [piece for document in plain for piece in document]
    assert "\n".join(pieces) == "\n".join(lines)
    assert all(4096 <= len(piece) < 4096 + 100 for piece in pieces[:-1])


def test_every_line_break_that_python_knows_breaks_lines(tmp_path):
    text = "a\r\nb\x0cc\u2028d\re\x1c\nf\n\n g\x85"
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    ((piece,),) = documents.each_document(documents.find("en", path))
    assert piece == "\n".join(text.splitlines())


def test_a_tsv_gives_its_first_column(tmp_path):
    (tmp_path / "a.tsv").write_text(
        "\n".join(f" text {i} \t{i}\tid" for i in range(20)) + "\n\t1\n"
    )
    first, second = documents.each_document(documents.find("en", tmp_path / "a.tsv"))
    assert (*first, *second) == tuple(f"text {i}" for i in range(20))
    assert len(first) == 16


def test_a_line_of_jsonl_and_a_row_of_parquet_are_documents(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(jsonl(field="body")))
    write_parquet(tmp_path / "a.parquet")
    write_parquet(tmp_path / "b.parquet", column="body")
    for name in ("a.jsonl", "a.jsonl.gz:body", "a.parquet", "b.parquet:body"):
        source = documents.find("en", tmp_path / name)
        assert list(documents.each_document(source)) == [(text,) for text in TEXTS]
    assert len(source.units) == 6  # row groups of 7 rows


def test_documents_can_be_begun_anywhere_and_dealt_out(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    (tmp_path / "a.txt").write_text("x" * 5000 + "\n" + "\n".join("y" * 4096 for _ in range(99)))
    (tmp_path / "a.tsv").write_text("\n".join(TEXTS).replace("Its", "0\t"))
    write_parquet(tmp_path / "a.parquet", rows=100)
    for name in ("a.jsonl", "a.txt", "a.tsv", "a.parquet"):
        source = documents.find("en", tmp_path / name)
        (unit,) = source.units
        whole = list(documents.documents(unit, source.field))
        assert len(whole) > 4
        assert list(documents.documents(unit, source.field, 1, 3)) == whole[1::3]
        assert list(documents.documents(unit, source.field, len(whole), 3)) == []


def test_texts_without_words_are_passed_over(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["", None, "word", " \n "])
    (tmp_path / "a.jsonl").write_bytes(jsonl(["", "word", " \n "]) + b"\n\n")
    for name in ("a.parquet", "a.jsonl"):
        source = documents.find("en", tmp_path / name)
        assert list(documents.each_document(source)) == [("word",)]


def test_a_folder_and_a_pattern_stand_for_their_files(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.jsonl").write_bytes(jsonl(TEXTS[20:], "body"))
    (tmp_path / "a.jsonl").write_bytes(jsonl(TEXTS[:20], "body"))
    (tmp_path / "README.md").write_text("no text of it")
    for name in (f"{tmp_path}:body", f"{tmp_path}/**/*.jsonl:body"):
        source = documents.find("en", type(tmp_path)(name))
        assert list(documents.each_document(source)) == [(text,) for text in TEXTS]
    assert documents.find("en", type(tmp_path)(f"{tmp_path}/a*:body")).units == (
        (str(tmp_path / "a.jsonl"), 0),
    )


def test_the_identity_follows_names_and_sizes(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl())
    before = documents.find("en", path).identity
    assert documents.find("en", path).identity == before
    path.write_bytes(jsonl(TEXTS[1:]))
    assert documents.find("en", path).identity != before


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.md", b"text", r"neither \.txt nor \.tsv nor \.jsonl"),
        ("a.parquet.gz", b"text", r"neither \.txt nor \.tsv nor \.jsonl"),
        ("a.jsonl", b"", "holds no text"),
        ("a.jsonl", b"{}\n", r"Line 1 of .*a\.jsonl has no text in a field 'text' \(it has \)"),
        ("a.jsonl", jsonl(field="body"), r"\(it has id, body\); name .* as in a\.jsonl:FIELD"),
        ("a.jsonl:id", jsonl(), "no text in a field 'id'"),
        ("a.jsonl", b"\n{'text': 1}\n", r"Line 2 of the corpus .*a\.jsonl is no JSON"),
        ("a.jsonl", b'{"text": "\\ud83d"}', "Line 1 of .* holds half a character"),
        ("a.jsonl", b"[1]\n", r"\(it has no fields\)"),
        ("a.jsonl", b'{"text": "caf\xe9"}', r"a\.jsonl is not UTF-8 \(line 1, byte 13\)"),
        ("a.jsonl.gz", gzip.compress(jsonl())[:40], "cannot be read"),
        ("a.parquet", b"PAR1 no parquet", "cannot be read"),
        ("missing.parquet", None, "cannot be read"),
        ("missing/*.txt", None, "has no file of the kinds"),
        ("a.txt:body", b"text", r"names the field 'body', which a \.txt lacks"),
    ],
)
def test_a_bad_file_is_refused_when_it_is_found(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name.partition(":")[0]).write_bytes(content)
    with pytest.raises(UserError, match=said):
        documents.find("en", tmp_path / name)


def test_a_bad_line_further_down_is_named_when_it_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl() + b"\n{")
    found = documents.each_document(documents.find("en", tmp_path / "a.jsonl"))
    with pytest.raises(UserError, match="Line 41 "):
        list(found)


def test_a_parquet_without_the_column_names_those_that_it_has(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", column="body")
    with pytest.raises(UserError, match=r"no column 'text' \(it has id, body\).*a\.parquet:COLUMN"):
        documents.find("en", path)
    with pytest.raises(UserError, match=r"'id' .* holds int64, not text"):
        documents.find("en", tmp_path / "a.parquet:id")


def test_files_of_several_kinds_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "a.jsonl").write_bytes(jsonl())
    with pytest.raises(UserError, match="mixes files of the kinds jsonl, txt"):
        documents.find("en", tmp_path)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"package pyarrow, which is missing; .*\[data\]"):
        documents.find("en", path)
