import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tensorstore as ts
from sae_toys import CHUNK, activations, language_model, load, split_of, text_rows

from emojax.errors import UserError
from emojax.lm.capture import Tap, capture
from emojax.sae import store, store_arrays
from emojax.sae.corpus import Rows

TAP = Tap(1)


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    drawn = {}
    for name, count in (("train", 600), ("heldout", 40)):
        lengths = rng.choice([5, 9, 30], count)
        tokens = tuple((1, *rng.integers(2, 40, n).tolist()) for n in lengths)
        drawn[name] = Rows(tokens, tuple(rng.integers(0, 2, count).tolist()), ("en", "zh"), name)
    return drawn


SHARD = 4 * CHUNK


@pytest.fixture(autouse=True, scope="module")
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_arrays, "SHARD_CHUNKS", SHARD // CHUNK)
        yield


@pytest.fixture(scope="module")
def captured(lm, rows, tmp_path_factory):
    directory = tmp_path_factory.mktemp("store")
    return store.capture(lm, TAP, rows, directory, limit_gib=1.0, chunk_tokens=CHUNK), directory


def same(one: store.Split, other: store.Split) -> None:
    assert one.tokens == other.tokens
    a, b = one.read(0, one.tokens), other.read(0, other.tokens)
    for name in (*store_arrays.COLUMNS, *store_arrays.TAP_COLUMNS):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_stored_is_what_the_model_computes_without_bos(lm, rows, captured):
    splits, _ = captured
    sample = splits["heldout"].read(0, splits["heldout"].tokens)
    assert splits["heldout"].tokens == sum(len(row) - 1 for row in rows["heldout"].tokens)
    assert lm.tokenizer.bos_token_id not in sample.token_ids
    assert sample.positions.min() == 1
    np.testing.assert_allclose(
        np.linalg.norm(sample.values.astype(np.float32), axis=1), 1, rtol=2e-3
    )
    for number in (0, 7, 39):
        row = np.array([rows["heldout"].tokens[number]], np.int32)
        direct = capture(lm.config, lm.params, row, np.ones_like(row, bool), [TAP])[TAP][0]
        own = sample.rows == number
        order = np.argsort(sample.positions[own])
        raw = (sample.values[own].astype(np.float32) * sample.norms[own, None])[order]
        np.testing.assert_array_equal(sample.token_ids[own][order], row[0, 1:])
        np.testing.assert_allclose(raw, direct[1:], rtol=2e-3, atol=2e-3 * np.abs(direct).max())
        assert set(sample.languages[own]) == {rows["heldout"].languages[number]}


def interrupted(after: int, what, monkeypatch) -> None:
    """Does something once so many batches of a capture have been computed."""
    batches, read = [], store._captured

    def interrupting(*given):
        for columns in read(*given):
            batches.append(columns)
            if len(batches) == after:
                what()
            yield columns

    monkeypatch.setattr(store, "_captured", interrupting)


def done(directory: Path) -> dict:
    return json.loads((directory / "store.json").read_text())["done"]


@pytest.mark.parametrize("after", [3, 8, 11])
def test_a_capture_stopped_by_a_signal_goes_on_and_is_the_same(
    lm, rows, captured, after, tmp_path, monkeypatch
):
    whole, _ = captured
    with monkeypatch.context() as patch:
        interrupted(after, lambda: os.kill(os.getpid(), signal.SIGINT), patch)
        with pytest.raises(KeyboardInterrupt):
            store.capture(lm, TAP, rows, tmp_path, limit_gib=1.0, chunk_tokens=CHUNK)
    before = done(tmp_path)["train"]
    # What was captured is kept, though a shard and a segment are begun.
    assert before["tokens"] < before["written"] < whole["train"].tokens
    assert before["written"] % SHARD
    new, write = [], store_arrays.write
    monkeypatch.setattr(store_arrays, "write", lambda *given: new.append(given[2]) or write(*given))
    again = store.capture(lm, TAP, rows, tmp_path, limit_gib=1.0, chunk_tokens=CHUNK)
    assert new[0] == before["written"] // SHARD * SHARD
    for name in whole:
        same(again[name], whole[name])


@pytest.mark.parametrize("after", [2, 9])
def test_a_capture_that_was_killed_goes_on_behind_its_last_whole_shard(
    lm, rows, captured, after, tmp_path, monkeypatch
):
    whole, _ = captured

    class PowerCut(BaseException):
        pass

    def cut():
        raise PowerCut

    with monkeypatch.context() as patch:
        interrupted(after, cut, patch)
        with pytest.raises(PowerCut):
            store.capture(lm, TAP, rows, tmp_path, limit_gib=1.0, chunk_tokens=CHUNK)
    assert done(tmp_path)["train"]["written"] % SHARD == 0
    assert (done(tmp_path)["train"]["written"] > 0) == (after == 9)
    again = store.capture(lm, TAP, rows, tmp_path, limit_gib=1.0, chunk_tokens=CHUNK)
    for name in whole:
        same(again[name], whole[name])


def test_arrays_are_few_objects_each_written_once(lm, rows, captured, tmp_path, monkeypatch):
    written, write = [], store_arrays.write
    monkeypatch.setattr(
        store_arrays, "write", lambda *given: written.append(given[2]) or write(*given)
    )
    store.capture(lm, TAP, {"train": rows["train"]}, tmp_path, limit_gib=1.0, chunk_tokens=CHUNK)
    shards = -(-captured[0]["train"].tokens // SHARD)
    assert written == [SHARD * n for n in range(shards)]
    for folder in ("rows", "1.resid_post/values"):
        objects = [
            path for path in (tmp_path / "train" / folder / "c").rglob("*") if path.is_file()
        ]
        assert len(objects) == shards


def test_a_store_of_format_2_is_read_and_gone_on_with(lm, rows, captured, tmp_path, monkeypatch):
    """Its chunks are objects of their own, and it counted whole segments only."""
    whole, _ = captured
    begun = store.identity(lm, [TAP], rows) | {"format": 2, "chunk_tokens": CHUNK}
    done = {name: {"rows": 0, "tokens": 0} for name in rows}
    store._write_state(tmp_path, begun, done)

    def capture():
        found = store.capture(lm, TAP, rows, tmp_path, limit_gib=1.0, chunk_tokens=CHUNK)
        for name in whole:
            same(found[name], whole[name])

    capture()
    metadata = json.loads((tmp_path / "train" / "rows" / "zarr.json").read_text())
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [CHUNK]
    tokens = sum(len(row) - 1 for row in rows["train"].tokens[: store.SEGMENT_ROWS])
    done["train"] = {"rows": store.SEGMENT_ROWS, "tokens": tokens}
    store._write_state(tmp_path, begun, done)
    written, write = [], store_arrays.write
    monkeypatch.setattr(
        store_arrays, "write", lambda *given: written.append(given[2]) or write(*given)
    )
    capture()
    assert written[0] == tokens // CHUNK * CHUNK
    store._write_state(tmp_path, begun | {"format": 1}, done)
    with pytest.raises(UserError, match=r"another format \(1, not 3\); give another --store"):
        capture()


def test_a_finished_store_is_not_captured_again(lm, rows, captured, monkeypatch):
    whole, directory = captured
    monkeypatch.setattr(store, "stream", lambda *_: pytest.fail("captured again"))
    again = store.capture(lm, TAP, rows, directory, limit_gib=1.0, chunk_tokens=CHUNK)
    same(again["train"], whole["train"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda lm, rows: (dataclasses.replace(lm, fingerprint="0" * 64), TAP, rows),
            "fingerprint",
        ),
        (lambda lm, rows: (lm, Tap(0), rows), "taps"),
        (lambda lm, rows: (lm, Tap(1, "mlp_out"), rows), "taps"),
        (
            lambda lm, rows: (
                lm,
                TAP,
                rows | {"train": dataclasses.replace(rows["train"], digest="x")},
            ),
            "text",
        ),
    ],
)
def test_a_store_of_something_else_is_refused_and_kept(lm, rows, captured, change, said):
    whole, directory = captured
    with pytest.raises(UserError, match=f"another {said} "):
        store.capture(*change(lm, rows), directory, limit_gib=1.0, chunk_tokens=CHUNK)
    again = store.capture(lm, TAP, rows, directory, limit_gib=1.0, chunk_tokens=CHUNK)
    same(again["heldout"], whole["heldout"])


def test_a_model_in_bfloat16_has_a_store_of_its_own(lm, rows, captured, tmp_path):
    whole, directory = captured
    half = load("toy", dtype=ml_dtypes.bfloat16)
    with pytest.raises(UserError, match=r"another model_dtype \(float32, not bfloat16\)"):
        store.capture(half, TAP, rows, directory, limit_gib=1.0, chunk_tokens=CHUNK)
    # What was made before stores said so is of float32.
    made = shutil.copytree(directory, tmp_path / "old") / "store.json"
    state = json.loads(made.read_text())
    assert state["holds"].pop("model_dtype") == "float32"
    made.write_text(json.dumps(state))
    again = store.capture(lm, TAP, rows, made.parent, limit_gib=1.0, chunk_tokens=CHUNK)
    same(again["heldout"], whole["heldout"])
    with pytest.raises(UserError, match=r"another model_dtype \(float32, not bfloat16\)"):
        store.capture(half, TAP, rows, made.parent, limit_gib=1.0, chunk_tokens=CHUNK)


def test_limits_and_damage_are_refused(lm, rows, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"data\.store_gib allows 1e-05"):
        store.capture(lm, TAP, rows, tmp_path / "big", limit_gib=1e-5)
    assert not (tmp_path / "big" / "store.json").exists()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "store.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        store.capture(lm, TAP, rows, tmp_path / "damaged", limit_gib=1.0)

    def full(path, size):
        raise UserError(f"The disk of {path} has no room for {size}.")

    monkeypatch.setattr(store, "require_room", full)
    with pytest.raises(UserError, match="no room"):
        store.capture(lm, TAP, rows, tmp_path / "full", limit_gib=1.0)


@pytest.mark.parametrize("format", [2, store.FORMAT])
@pytest.mark.parametrize("fault", ["flipped", "cut", "lost"])
def test_a_damaged_chunk_is_named_with_what_to_do(lm, rows, tmp_path, format, fault):
    held = {"heldout": rows["heldout"]}
    if format == 2:
        begun = store.identity(lm, [TAP], held) | {"format": 2, "chunk_tokens": CHUNK}
        store._write_state(tmp_path, begun, {"heldout": {"rows": 0, "tokens": 0}})
    given = {"limit_gib": 1.0, "chunk_tokens": CHUNK}
    store.capture(lm, TAP, held, tmp_path, **given)
    file = tmp_path / "heldout" / "1.resid_post" / "values" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content if fault == "flipped" else content[:99])
    if fault == "lost":
        file.unlink()
    split = store.capture(lm, TAP, held, tmp_path, **given)["heldout"]
    said = rf"store {tmp_path} cannot be read \(.*1\.resid_post/values.*delete that folder and run"
    if (format, fault) == (2, "lost"):  # Nothing says that it should be there: zeros are read.
        assert not split.sample(10).x.any()
        return
    for read in (
        lambda: split.read(0, 10),
        lambda: split.sample(10),
        lambda: next(split.batches(64, seed=0)),
        lambda: split.origin(64, 0, 0),
    ):
        with pytest.raises(UserError, match=said):
            read()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MiB, or None where this process may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    yield disk if mounted else None
    if mounted:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_becomes_full_is_one_sentence_and_loses_nothing(lm, small_disk, tmp_path):
    """With room again the same command goes on, and the store is that of a capture with room."""
    folder, how = (small_disk, "filled") if small_disk else (tmp_path, "limited")

    def run(how: str) -> subprocess.CompletedProcess:
        program = str(Path(__file__).parent / "full_disk.py")
        command = [sys.executable, program, str(folder), "capture", how]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(how)
    assert done.returncode == 1, done.stderr[-2000:]
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert done.stderr.endswith(said + "\n")
    assert "No space left" in said or "File too large" in said
    assert "free room on a full disk) and run again: what was captured before is kept" in said
    kept = json.loads((folder / "store" / "store.json").read_text())["done"]
    assert kept["train"]["written"] == 2 * SHARD
    (folder / "ballast").unlink(missing_ok=True)
    done = run("roomy")
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {"train": text_rows(600), "heldout": text_rows(40, seed=1)}
    given = {"limit_gib": 1.0, "chunk_tokens": CHUNK}
    whole = store.capture(lm, TAP, rows, tmp_path / "whole", **given)
    again = store.capture(lm, TAP, rows, folder / "store", **given)
    for name in whole:
        same(again[name], whole[name])


def test_batches_are_raw_and_each_pass_sees_each_token_once(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BUFFER_CHUNKS", 3)
    norms = np.arange(1, 8 * CHUNK + 1, dtype=np.float32)
    x = np.eye(16, dtype=np.float32)[np.arange(8 * CHUNK) % 16] * norms[:, None]
    split = split_of(tmp_path, x)
    steps = split.steps_per_epoch(128)
    assert steps == len(x) // 128
    batches = split.batches(128, seed=4)
    for _ in range(2):
        seen = np.concatenate([next(batches).x for _ in range(steps)])
        np.testing.assert_array_equal(seen[np.argsort(seen.max(axis=1))], x)
        assert not np.array_equal(seen[:128], x[:128])


def test_batches_depend_on_seed_and_step_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "BUFFER_CHUNKS", 3)
    split = split_of(tmp_path, activations(8 * CHUNK))
    whole = split.batches(96, seed=4)
    batches = [next(whole).x for _ in range(2 * split.steps_per_epoch(96) + 3)]
    for first in (0, 1, 7, 21, len(batches) - 1):
        np.testing.assert_array_equal(next(split.batches(96, 4, first)).x, batches[first])
        chosen = split.tokens_of(96, 4, first)
        np.testing.assert_array_equal(split.raw(0, split.tokens).x[chosen], batches[first])
    assert not np.array_equal(next(split.batches(96, seed=5)).x, batches[0])
    assert not np.array_equal(batches[0], batches[split.steps_per_epoch(96)])


def test_a_transcoder_s_target_is_kept_beside_its_input(lm, rows, captured, tmp_path):
    target = Tap(1, "mlp_out")
    both = store.capture(lm, TAP, rows, tmp_path, limit_gib=1.0, target=target, chunk_tokens=CHUNK)[
        "heldout"
    ]
    alone = store.capture(lm, target, rows, tmp_path / "alone", limit_gib=1.0, chunk_tokens=CHUNK)
    np.testing.assert_array_equal(
        both.raw(0, both.tokens).x, captured[0]["heldout"].raw(0, both.tokens).x
    )
    np.testing.assert_array_equal(
        both.raw(0, both.tokens).target, alone["heldout"].raw(0, both.tokens).x
    )
    with pytest.raises(UserError, match="another taps"):
        store.capture(
            lm, TAP, rows, tmp_path, limit_gib=1.0, target=Tap(1, "attn_out"), chunk_tokens=CHUNK
        )


def test_one_pass_serves_several_taps_and_a_part_of_them(lm, rows, captured, tmp_path, monkeypatch):
    taps = [Tap(0), TAP, Tap(1, "mlp_out")]
    passes, read = [], store.stream
    monkeypatch.setattr(store, "stream", lambda *given: passes.append(given[2]) or read(*given))
    held = store.capture_taps(lm, taps, rows, tmp_path, limit_gib=1.0, chunk_tokens=CHUNK)
    assert all(set(given) == set(taps) for given in passes)
    same(held.splits(TAP)["train"], captured[0]["train"])
    lower = held.splits(Tap(0))["heldout"].raw(0, 100).x
    assert not np.array_equal(lower, captured[0]["heldout"].raw(0, 100).x)
    del passes[:]
    part = store.capture(lm, Tap(0), rows, tmp_path, limit_gib=1.0, chunk_tokens=CHUNK)
    assert not passes
    np.testing.assert_array_equal(part["heldout"].raw(0, 100).x, lower)


def test_a_store_at_an_address_is_one_on_disk(lm, rows, captured):
    """The way to `gs://`, through the driver that keeps everything in memory."""
    place = "memory://bucket/store"
    small = {"heldout": rows["heldout"]}
    for _ in range(2):
        found = store.capture(lm, TAP, small, place, limit_gib=1.0, chunk_tokens=CHUNK)
        same(found["heldout"], captured[0]["heldout"])
    with pytest.raises(UserError, match="another taps"):
        store.capture(lm, Tap(0), small, place, limit_gib=1.0, chunk_tokens=CHUNK)
    spec = ts.KvStore.Spec(store_arrays.kvstore("gs://bucket/folder")).to_json()
    assert spec == {"driver": "gcs", "bucket": "bucket", "path": "folder/"}
