"""Activations streamed: what the buffer gives out, and that a run goes on bitwise."""

import dataclasses
import itertools
import json
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sae_toys import SAE, STREAM, TRAIN, Cycle, D, language_model, read_log, streamed, text_rows

from emojax.errors import UserError
from emojax.lm.capture import Tap, capture
from emojax.sae import ahead, mixing, text_stream, trainer
from emojax.sae import state as states
from emojax.sae.corpus import DataConfig
from emojax.sae.mixing import Fresh
from emojax.sae.packing import Packer
from emojax.sae.stream import ActivationsConfig

TAP = Tap(1)
B, DEPTH = TRAIN.batch_tokens, 6
TOKENS = 40 * B
SETTINGS = dataclasses.replace(TRAIN, epochs=1)


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture(scope="module")
def rows():
    return text_rows(600)


def opened(lm, rows, **options):
    return streamed(lm, rows, SETTINGS, tokens=TOKENS, **options)


def direct(lm, rows) -> list[np.ndarray]:
    """Raw activations of each row."""
    found = []
    for row in rows.tokens:
        tokens = np.array([row], np.int32)
        read = capture(lm.config, lm.params, tokens, np.ones_like(tokens, bool), [TAP])[TAP]
        found.append(np.asarray(read[0]))
    return found


def test_a_drawn_token_is_gone_and_its_time_in_the_buffer_is_geometric():
    """4,000 steps of 4 columns with 8 slots each: tokens are numbered as they are captured."""
    depth, columns, steps = 8, 4, 4000
    mesh = states.make_mesh(TRAIN, SAE.n_latents)
    buffer = mixing.empty(mixing.shapes(mesh, 1, columns, depth, 1, "float32"))
    captured = itertools.count()

    def fresh() -> Fresh:
        numbers = jnp.array([next(captured) for _ in range(columns)], jnp.float32)
        place = numbers.astype(jnp.int32)
        return Fresh(jnp.ones((1, columns, 1)), numbers[None], place, place)

    for slot in range(depth):
        assert int(buffer.filled) == slot * columns
        buffer = mixing.put(mesh, buffer, fresh(), np.full(columns, slot, np.int32))
    drawn = []
    for step in range(steps):
        slots = mixing.slots(mesh, (columns, depth), np.int32(0), np.int32(step))
        drawn.append(np.asarray(mixing.draw(mesh, buffer, slots).x[:, 0]))
        buffer = mixing.put(mesh, buffer, fresh(), slots)
    assert int(buffer.filled) == depth * columns
    drawn = np.stack(drawn)
    left = np.asarray(buffer.norms).ravel()
    # Each of the tokens that were captured is given out once or still there.
    assert sorted([*drawn.ravel(), *left]) == list(range((depth + steps) * columns))
    # Token t was captured for step t // columns - depth, and may be drawn at the next one.
    times = np.arange(steps)[:, None] - (drawn // columns - depth)
    late = times[200:].ravel()
    assert late.min() == 1
    assert late.mean() == pytest.approx(depth, rel=0.1)
    for n in (1, 4, 8, 16):
        assert np.mean(late > n) == pytest.approx((1 - 1 / depth) ** n, abs=0.02)
    # Tokens captured side by side go out together with probability 1 / (2 depth - 1).
    when = {int(t): step for step, batch in enumerate(drawn) for t in batch}
    pairs = [
        when[t] == when[t + 1]
        for t in range(0, 3000 * columns, columns)
        if t in when and t + 1 in when
    ]
    assert np.mean(pairs) == pytest.approx(1 / (2 * depth - 1), abs=0.02)


def test_the_buffer_is_changed_in_place():
    mesh = states.make_mesh(TRAIN, SAE.n_latents)
    like = mixing.shapes(mesh, 1, 64, 256, 32, "float16")
    fresh = jax.eval_shape(
        lambda: Fresh(
            jnp.zeros((1, 64, 32), "float16"),
            jnp.zeros((1, 64)),
            jnp.zeros(64, jnp.int32),
            jnp.zeros(64, jnp.int32),
        )
    )
    slots = np.zeros(64, np.int32)
    for compiled in (
        mixing.draw.lower(mesh, like, slots).compile(),
        mixing.put.lower(mesh, like, fresh, slots).compile(),
    ):
        assert compiled.memory_analysis().temp_size_in_bytes < like.values.size * 2 / 4


def test_what_is_given_out_is_what_the_model_computes_once_and_without_bos(lm, rows):
    """Batches and the buffer at their end are the first tokens of the text, in pack order."""
    own = direct(lm, rows)
    source, steps = opened(lm, rows), 30
    batches = source.batches(B, seed=0)
    seen = [np.asarray(next(batches).x) for _ in range(steps)]
    state = jax.device_get(source.state())
    seen.append((state.values[0] * state.norms[0][..., None]).reshape(-1, D))
    wanted = []
    for pack in itertools.islice(Packer(lm, Cycle(rows), STREAM.capture_tokens, 1), 40):
        row, position = np.divmod(pack.kept[: pack.count], pack.tokens.shape[1])
        assert position.min() == 1
        wanted += [own[pack.numbers[r]][p] for r, p in zip(row, position, strict=True)]
    wanted, seen = np.stack(wanted[: (steps + DEPTH) * B]), np.concatenate(seen)
    assert wanted.shape == seen.shape
    for column in (0, 7):
        wanted, seen = (x[np.argsort(x[:, column])] for x in (wanted, seen))
        np.testing.assert_allclose(seen[:, column], wanted[:, column], rtol=1e-3, atol=1e-4)


def test_a_restored_stream_gives_the_same_batches(lm, rows):
    source = opened(lm, rows)
    batches = source.batches(B, seed=3)
    for _ in range(7):
        next(batches)
    state, position = jax.device_get(source.state()), json.dumps(source.position())
    wanted = [np.asarray(next(batches).x) for _ in range(9)]
    again = opened(lm, rows)
    again.restore(jax.device_put(state), json.loads(position))
    batches = again.batches(B, seed=3, first_step=7)
    for batch in wanted:
        np.testing.assert_array_equal(next(batches).x, batch)
    assert json.dumps(again.position()) == json.dumps(source.position())
    other = opened(lm, rows).batches(B, seed=4)
    assert not np.array_equal(next(other).x, wanted[0])


@pytest.fixture(scope="module")
def whole(lm, rows, tmp_path_factory):
    """A run that nothing stops."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(states, "SAMPLE_TOKENS", 1000)
        return trainer.train(SAE, SETTINGS, opened(lm, rows), directory), read_log(directory)


@pytest.mark.parametrize("error", [RuntimeError, UserError])
def test_a_run_is_stopped_and_goes_on_bitwise(lm, rows, whole, error, tmp_path, monkeypatch):
    """What the input is to blame for is told when the last whole step is saved."""
    monkeypatch.setattr(states, "SAMPLE_TOKENS", 1000)
    whole, log = whole
    assert len(log) == 40
    assert log[-1]["loss"] < 0.8 * log[0]["loss"]

    class Dying(Cycle):
        def __next__(self):
            if self._next == 330:
                raise error("power cut")
            return super().__next__()

    with pytest.raises(error, match="power cut"):
        trainer.train(SAE, SETTINGS, opened(lm, rows, text=Dying(rows)), tmp_path / "cut")
    done = len(read_log(tmp_path / "cut"))
    assert 10 < done < 39
    saved = max(int(path.name) for path in (tmp_path / "cut" / "checkpoints").glob("[0-9]*"))
    assert done % SETTINGS.checkpoint_every
    assert saved == (done if error is UserError else done // 10 * 10)
    again = trainer.train(SAE, SETTINGS, opened(lm, rows), tmp_path / "cut")
    assert read_log(tmp_path / "cut") == log
    np.testing.assert_array_equal(again.w_enc, whole.w_enc)


def test_the_next_batch_is_captured_while_a_step_is_computed(lm, rows, tmp_path, monkeypatch):
    """It is asked for before the step's numbers, and while the stream waits for no younger one."""
    monkeypatch.setattr(states, "SAMPLE_TOKENS", 1000)
    source, told, given = opened(lm, rows), [], []
    batches, entry, wait = source.batches, trainer._entry, jax.block_until_ready

    def asked(*place):
        for batch in batches(*place):
            given.append(batch)
            told.append(f"batch {len(given)}")
            yield batch

    def waited(arrays):
        for number, batch in enumerate(given, 1):
            if batch is arrays:
                told.append(f"waited for {number}")
        return wait(arrays)

    def numbers(*state):
        told.append(f"numbers {len(read_log(tmp_path)) + 1}")
        return entry(*state)

    source.batches = asked
    monkeypatch.setattr(jax, "block_until_ready", waited)
    monkeypatch.setattr(trainer, "_entry", numbers)
    trainer.train(SAE, dataclasses.replace(SETTINGS, checkpoint_every=5), source, tmp_path)
    # A checkpoint is of the source as its step left it: of the 10th, before the 11th is asked for.
    start = told.index("batch 7")
    assert told[start : told.index("batch 12")] == [
        *("batch 7", "numbers 6", "waited for 6", "batch 8", "numbers 7"),
        *("waited for 7", "batch 9", "numbers 8", "waited for 8", "batch 10", "numbers 9"),
        *("numbers 10", "waited for 9", "batch 11", "waited for 10"),
    ]


def test_a_transcoder_s_target_is_of_the_same_tokens(lm, rows):
    both = next(opened(lm, rows, taps=(TAP, Tap(1, "mlp_out"))).batches(B, seed=0))
    inputs = next(opened(lm, rows).batches(B, seed=0))
    target = next(opened(lm, rows, taps=(Tap(1, "mlp_out"),)).batches(B, seed=0))
    np.testing.assert_allclose(both.x, inputs.x, rtol=1e-5)
    np.testing.assert_allclose(both.target, target.x, rtol=1e-5)


def test_a_sample_is_the_first_tokens_whenever_it_is_asked(lm, rows):
    source = opened(lm, rows)
    before = source.sample(300).x
    assert before.shape == (300, D)
    next(source.batches(B, seed=0))
    np.testing.assert_array_equal(source.sample(300).x, before)


def test_an_activation_that_is_not_finite_is_named(lm, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(states, "SAMPLE_TOKENS", 1000)
    embed = np.array(lm.params["embed"])
    embed[45] = np.nan
    broken = dataclasses.replace(lm, params=lm.params | {"embed": jnp.asarray(embed)})
    row = [*rows.tokens[200][:3], 45]
    tokens = (*rows.tokens[:200], tuple(row), *rows.tokens[201:])
    text = dataclasses.replace(rows, tokens=tokens)
    with pytest.raises(UserError, match=r"at step \d+ .* is of row 200, position \d") as error:
        trainer.train(SAE, SETTINGS, opened(broken, text), tmp_path)
    assert f'in "{lm.tokenizer.decode(row)}":' in str(error.value)


def test_an_activation_that_is_not_finite_is_named_by_its_document(lm, tmp_path):
    """Of a stream of documents, packed and shuffled, one holds what the model breaks at."""
    words = ["a glad day", "no sad man", "we ran home", "it is cold"]
    texts = [" ".join(words[(i + j * j) % 4] for j in range(i % 9 + 1)) for i in range(400)]
    texts[123] += " she is glad 我 and so am i"
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    data = DataConfig(
        languages=("en",), weights=(1.0,), row_tokens=32, short_share=0.0, heldout_share=0.01
    )

    def text():
        return text_stream.rows(lm, data, [("en", tmp_path / "a.jsonl")], "train")

    token = lm.tokenizer.convert_tokens_to_ids("我")
    embed = np.array(lm.params["embed"])
    embed[token] = np.nan
    broken = dataclasses.replace(lm, params=lm.params | {"embed": jnp.asarray(embed)})
    source = opened(broken, None, text=text())
    for _ in itertools.islice(source.batches(B, seed=0), 500):
        if "not finite" in (said := source.origin(B, 0, 0)):
            break
    found = re.search(r'row (\d+), position \d+, in "(.*)"$', said)
    assert found
    row = list(itertools.islice(text(), int(found[1]) + 1))[-1][0]
    assert token in row
    assert lm.tokenizer.decode(row) == found[2]
    (piece,) = (piece for piece in found[2].split("<bos>") if "我" in piece)
    assert piece.replace(" ", "") in texts[123].replace(" ", "")


def test_what_does_not_fit_is_refused(lm, rows):
    with pytest.raises(UserError, match="does not hold two batches"):
        opened(lm, rows, config=dataclasses.replace(STREAM, buffer_tokens=2 * B - 1))
    with pytest.raises(UserError, match="layer"):
        opened(lm, rows, taps=(Tap(2),))
    with pytest.raises(UserError, match="less than a batch"):
        opened(lm, rows).steps_per_epoch(TOKENS + 1)
    with pytest.raises(UserError, match="dtype 'int8'"):
        ActivationsConfig(dtype="int8")
    with pytest.raises(UserError, match="model_dtype 'float16'"):
        ActivationsConfig(model_dtype="float16")
    with pytest.raises(UserError, match="capture_tokens is 0"):
        ActivationsConfig(capture_tokens=0)


def test_text_that_ends_is_named(lm, rows):
    class Ending(Cycle):
        def __next__(self):
            if self._next == 600:
                raise StopIteration
            return super().__next__()

    batches = opened(lm, rows, text=Ending(rows)).batches(B, seed=0)
    with pytest.raises(UserError, match=r"ends after 600 rows, .*; let it begin again"):
        for _ in batches:
            pass


def test_packs_hold_each_row_once_and_go_on_from_any_state(lm, rows):
    packer = Packer(lm, Cycle(rows), 256, 2)
    packs = list(itertools.islice(packer, 25))
    assert {pack.tokens.shape for pack in packs} == {(16, 16), (8, 32)}
    numbers = np.concatenate([pack.numbers for pack in packs])
    assert len(set(numbers.tolist())) == len(numbers)
    for pack in packs:
        for row, mask, number in zip(pack.tokens, pack.mask, pack.numbers, strict=True):
            assert tuple(row[mask]) == rows.tokens[number]
        kept = pack.tokens.ravel()[pack.kept[: pack.count]]
        assert pack.count == pack.mask.sum() - len(pack.numbers)
        assert lm.tokenizer.bos_token_id not in kept
    for place in (0, 1, 9, 24):
        again = Packer(lm, Cycle(rows), 256, 2)
        again.set_state(json.loads(json.dumps(packs[place].before)))
        np.testing.assert_array_equal(next(again).tokens, packs[place].tokens)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (6, 4), (2, 16)])
def test_with_other_devices_the_same_rows_go_on_being_packed_together(lm, rows, before, after):
    """Else a place within a pack would be another one's, and rows could wait for ever."""
    packer = Packer(lm, Cycle(rows), 256, before)
    packs = list(itertools.islice(packer, 12))
    again = Packer(lm, Cycle(rows), 256, after)
    again.set_state(json.loads(json.dumps(packs[5].before)))
    for wanted, pack in zip(packs[5:], again, strict=False):
        assert len(pack.tokens) % after == 0
        assert pack.count == wanted.count
        tokens = pack.tokens.ravel()[pack.kept[: pack.count]]
        np.testing.assert_array_equal(tokens, wanted.tokens.ravel()[wanted.kept[: wanted.count]])
        np.testing.assert_array_equal(pack.numbers, wanted.numbers)


def test_a_stream_goes_on_with_as_many_processes_only(lm, rows, tmp_path, monkeypatch):
    """Each has read a part of the text of its own."""
    monkeypatch.setattr(states, "SAMPLE_TOKENS", 1000)
    monkeypatch.setattr(trainer, "_of_all", lambda position: [position] * 2)
    short = dataclasses.replace(SETTINGS, checkpoint_every=2)
    source = streamed(lm, rows, short, tokens=4 * B)
    trainer.train(SAE, short, source, tmp_path)
    with pytest.raises(UserError, match=r"read by 2 processes.*now 1; go on with 2 \("):
        trainer.train(SAE, short, streamed(lm, rows, short, tokens=4 * B), tmp_path)
    assert (tmp_path / "checkpoints" / "4").is_dir()


def test_a_thread_works_ahead_and_only_waiting_is_counted():
    made, clock, third = [], ahead.Stopwatch(), threading.Event()

    def work():
        for i in range(10):
            made.append(i)
            if i == 3:
                third.set()
            yield i

    items = ahead.ahead(work(), 3, clock)
    assert next(items) == 0
    assert third.wait(10)
    items.close()
    assert made == [0, 1, 2, 3]
    assert list(ahead.ahead(iter("abc"), 2, clock)) == ["a", "b", "c"]
    assert clock.seconds > 0
