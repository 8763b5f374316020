import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
from sae_toys import SAE, TRAIN, corpora, language_model, load, read_log, train_one, two_processes

from emojax.config import Config, override, sweep
from emojax.errors import UserError
from emojax.lm import sources
from emojax.lm.capture import Tap
from emojax.sae import artefact, pipeline, state, store, trainer
from emojax.sae.corpus import DataConfig
from emojax.study.settings import Study

CONFIG = Config(
    study=Study(model="toy", sae="toy"),
    sae=SAE,
    data=DataConfig(tokens=6000, heldout_tokens=600, row_tokens=32, heldout_share=0.1),
    train=TRAIN,
)
STREAMED = (
    "activations.streamed=true",
    "activations.buffer_tokens=1024",
    "activations.capture_tokens=512",
)


@pytest.fixture(autouse=True)
def toy_model(monkeypatch):
    monkeypatch.setattr(sources, "load", load)


def start(tmp_path, texts, name="artefact", config=CONFIG):
    folders = {"out": tmp_path / "out", "artefact": tmp_path / name}
    return train_one(config, texts, store_dir=tmp_path / "store", **folders)


def run_all(tmp_path, configs, texts):
    folders = {"out": tmp_path / "out", "artefact": tmp_path / "artefact"}
    return pipeline.run_all(configs, texts, **folders, store_dir=tmp_path / "store", command="…")


def test_from_text_to_an_artefact_twice_the_same(tmp_path, monkeypatch):
    texts = corpora(tmp_path)
    evaluation = start(tmp_path, texts)
    names = ("trained", "random", "untrained")
    unit = [evaluation[name]["fvu"]["unit_norm"]["all"] for name in names]
    assert unit[0] < unit[1] and unit[0] < unit[2]
    loaded = artefact.load(tmp_path / "artefact", language_model())
    assert loaded.evaluation == json.loads(json.dumps(evaluation))
    assert loaded.record["tokens"]["train"] >= 6000
    # In float32, as it was before a record could say so: such runs and artefacts stay valid.
    assert loaded.record["model"].keys() == {"name", "fingerprint"}
    assert [source["file"] for source in loaded.record["corpora"]] == [p.name for _, p in texts]
    # All stages are finished: the second run only measures and writes.
    again = start(tmp_path, texts, "again")
    assert again == evaluation
    assert (tmp_path / "out" / "training_log.jsonl").read_text().count("evaluation") == 1
    second = artefact.load(tmp_path / "again")
    np.testing.assert_array_equal(second.sae.w_enc, loaded.sae.w_enc)
    # What is refused leaves the record of what is there.
    record = (tmp_path / "out" / "config.json").read_bytes()
    assert json.loads(record)["train"]["learning_rate"] == TRAIN.learning_rate
    other = override(CONFIG, ["train.learning_rate=0.1"])
    for name, said in (
        ("artefact", "a dictionary with another train.learning_rate; give another --artefact"),
        ("other", "a run with another train.learning_rate; give another --out"),
    ):
        with pytest.raises(UserError, match=said):
            start(tmp_path, texts, name, other)
        assert (tmp_path / "out" / "config.json").read_bytes() == record
    # Settings that change no number do not, and a finished dictionary's card is made anew.
    card = (tmp_path / "artefact" / "README.md").read_text()
    (tmp_path / "artefact" / "README.md").unlink()
    monkeypatch.setattr(store, "capture_taps", lambda *_, **__: pytest.fail("captured again"))
    changes = ["train.keep=5", "train.checkpoint_every=7", "data.store_gib=3"]
    again = start(tmp_path, texts, config=override(CONFIG, changes))
    assert again == json.loads(json.dumps(evaluation))
    assert (tmp_path / "artefact" / "README.md").read_text() == card


def test_streamed_it_trains_as_well_and_stores_only_what_is_measured(tmp_path):
    """Twice over its text, and oftener over the Chinese, which is short."""
    texts = corpora(tmp_path)
    short = tmp_path / "talk.tsv"
    short.write_text("\n".join((tmp_path / "talk.txt").read_text().splitlines()[:100]))
    texts = (*texts[:2], ("zh", short))
    # Few documents are held out by their hash.
    config = override(CONFIG, [*STREAMED, "data.tokens=3000", "data.heldout_share=0.5"])
    evaluation = start(tmp_path, texts, config=config)
    unit = [evaluation[name]["fvu"]["unit_norm"]["all"] for name in ("trained", "untrained")]
    assert unit[0] < unit[1]
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"store.json", "heldout"}
    record = artefact.load(tmp_path / "artefact", language_model()).record
    assert record["activations"]["buffer_tokens"] == 1024
    text = (tmp_path / "out" / "training_log.jsonl").read_text()
    *lines, last = map(json.loads, text.splitlines())
    assert len(lines) == 2 * (3000 // TRAIN.batch_tokens)
    tokens = record["tokens"]["train"]
    assert 1500 < tokens < 3000
    assert record["passes"] == 2 * 3000 / tokens
    card = (tmp_path / "artefact" / "README.md").read_text()
    assert f"Text: {tokens:,} tokens" in card and f"{record['passes']:.3g} passes" in card
    assert all(0 <= line["input_wait"] <= 1 for line in lines)
    # The log ends with what was measured, and the artefact's copy does too.
    assert last == {"step": len(lines), "evaluation": json.loads(json.dumps(evaluation))}
    assert (tmp_path / "artefact" / "training_log.jsonl").read_text() == text


@pytest.mark.parametrize(
    ("changes", "axis", "said"),
    [
        (["train.update=fused"], "sae.architecture=topk,relu", "relu trains with dense"),
        ([*STREAMED, "activations.buffer_tokens=200"], None, "does not hold two batches"),
        ([*STREAMED, "data.tokens=100"], None, "less than a batch"),
        ([], "train.seed=0,1,2", r"out/train\.seed=2 holds a run with another data, sae\.k;"),
        ([], "train.seed=0,1,3", r"train\.seed=3 holds a dictionary with another format, sae, tra"),
        ([], "sae.n_latents=32,64", "MiB are needed"),
    ],
)
def test_what_configs_tell_is_refused_for_a_whole_sweep_before_the_weights_are_read(
    tmp_path, monkeypatch, changes, axis, said
):
    """Of a sweep it is the last dictionary that cannot be trained."""
    reading = Mock(side_effect=UserError("the weights are read"))
    monkeypatch.setattr(sources, "load", reading)
    other = override(CONFIG, ["train.seed=2", "sae.k=3"])
    run = {"sae": dataclasses.asdict(other.sae), "train": dataclasses.asdict(other.train)}
    for place, record in (
        ("out/train.seed=2/run.json", run),
        ("artefact/train.seed=3/config.json", {"data": dataclasses.asdict(CONFIG.data)}),
    ):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_text(json.dumps(record))
    configs = sweep(override(CONFIG, changes), [] if axis is None else [axis])
    if said == "MiB are needed":  # both keep their checkpoints
        sizes = [
            trainer.checkpoint_bytes(c.sae, c.train, state.make_mesh(c.train, c.sae.n_latents), {})
            for c in configs.values()
        ]
        free = (TRAIN.keep + 1) * sum(sizes) + max(sizes) - 1
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=said):
        run_all(tmp_path, configs, corpora(tmp_path))
    assert not reading.called
    if said == "MiB are needed":
        free += 1
        with pytest.raises(UserError, match="the weights are read"):
            run_all(tmp_path, configs, corpora(tmp_path))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["data.tokens=1500"], "stored tokens, in whole chunks of 2,048, is less than a batch"),
        ([], r"a run with another corpora, model\.fingerprint, text; give another --out"),
        ([*STREAMED, "data.heldout_tokens=1", "data.heldout_share=0.5"], "ends before a row in"),
    ],
)
def test_what_text_and_model_tell_is_refused_before_anything_is_captured(
    tmp_path, monkeypatch, changes, said
):
    monkeypatch.setattr(store, "capture_taps", lambda *_, **__: pytest.fail("captured"))
    if not changes:
        run = {"sae": dataclasses.asdict(SAE), "train": dataclasses.asdict(TRAIN)}
        origin = {"data": dataclasses.asdict(CONFIG.data), "model": {"name": "toy"}}
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "run.json").write_text(json.dumps(run | {"provenance": origin}))
    with pytest.raises(UserError, match=said):
        start(tmp_path, corpora(tmp_path), config=override(CONFIG, changes))


def test_a_model_that_cannot_be_split_so_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "load", lambda *_, **__: pytest.fail("the model was read"))
    with pytest.raises(UserError, match=r"over 3 of the 1 devices .* activations\.model_shards"):
        start(tmp_path, corpora(tmp_path), config=override(CONFIG, ["activations.model_shards=3"]))


def test_several_dictionaries_are_trained_from_one_capture_and_finished_ones_kept(
    tmp_path, monkeypatch
):
    texts = corpora(tmp_path)
    short = override(CONFIG, ["train.epochs=1", "data.tokens=3000"])
    configs = sweep(short, ["sae.layer=0,1", "sae.n_latents=32,48"])
    captures = []
    read = store.capture_taps
    monkeypatch.setattr(
        store, "capture_taps", lambda *a, **k: captures.append(a[1]) or read(*a, **k)
    )

    train = trainer.train

    def dying(sae, *given, **more):
        if (sae.layer, sae.n_latents) == (1, 32):
            raise RuntimeError("power cut")
        return train(sae, *given, **more)

    monkeypatch.setattr(trainer, "train", dying)
    with pytest.raises(RuntimeError):
        run_all(tmp_path, configs, texts)
    trained = []
    monkeypatch.setattr(
        trainer, "train", lambda sae, *a, **k: trained.append(sae) or train(sae, *a, **k)
    )
    found = run_all(tmp_path, configs, texts)
    assert [(sae.layer, sae.n_latents) for sae in trained] == [(1, 32), (1, 48)]
    assert list(found) == list(configs)
    assert captures == [[Tap(0), Tap(1)]] * 2
    assert run_all(tmp_path, configs, texts) == json.loads(json.dumps(found))
    assert (len(trained), len(captures)) == (2, 2)
    for name, config in configs.items():
        loaded = artefact.load(tmp_path / "artefact" / name)
        assert loaded.sae.config == config.sae
        assert loaded.evaluation == json.loads(json.dumps(found[name]))


def test_two_processes_do_what_one_does_and_stop_together(tmp_path):
    """Stored: the same dictionary. Streamed, each of its own part of the text: as good a one, and
    stopped by a signal to one of them, they go on bitwise.
    """
    texts = corpora(tmp_path)
    lines = (tmp_path / "talk.txt").read_text().splitlines()[:1000]
    (tmp_path / "talk.tsv").write_text("\n".join(lines))
    alone = start(tmp_path / "alone", texts, config=override(CONFIG, ["train.epochs=1"]))
    program = str(Path(__file__).parent / "pipeline_process.py")
    outputs = two_processes(lambda port, i: [program, str(tmp_path), port, i, "2"])
    loaded = artefact.load(tmp_path / "stored" / "artefact")
    for kind in ("trained", "untrained"):
        fvu = [m[kind]["fvu"]["unit_norm"]["all"] for m in (loaded.evaluation, alone)]
        assert fvu[0] == pytest.approx(fvu[1], rel=1e-4)
    # Asked at the batch of step 4, said at step 8, heard at step 16.
    assert [out.split()[-2:] for out in outputs] == [["STOPPED", "16"]] * 2  # after Gloo's own
    whole = read_log(tmp_path / "whole")
    assert len(whole) == 23 + 1
    assert read_log(tmp_path / "cut") == whole
    found, cut = (artefact.load(tmp_path / name / "artefact") for name in ("whole", "cut"))
    assert cut.fingerprint == found.fingerprint
    # Half of the text from each: all that was asked for, and read once.
    assert (found.record["tokens"]["train"], found.record["passes"]) == (3000, 1)
    names = ("trained", "random", "untrained")
    unit = [found.evaluation[name]["fvu"]["unit_norm"]["all"] for name in names]
    assert unit[0] < unit[1] and unit[0] < 0.6 * unit[2]


def test_dictionaries_that_cannot_share_a_capture_are_refused(tmp_path):
    def start_all(configs):
        return pipeline.run_all(
            configs, (), out=tmp_path, artefact=tmp_path, store_dir=None, command="…"
        )

    with pytest.raises(UserError, match="have one data"):
        start_all(sweep(CONFIG, ["data.seed=0,1"]))
    streamed = override(CONFIG, ["activations.streamed=true"])
    with pytest.raises(UserError, match="serve one dictionary"):
        start_all(sweep(streamed, ["train.seed=0,1"]))
    for axes in (["train.seed=0,0"], ["train.seed="], ["train.seed=0", "train.seed=1"]):
        with pytest.raises(UserError, match="The sweep"):
            sweep(CONFIG, axes)


def test_a_width_or_layer_that_is_not_the_models_is_refused_before_its_weights_are_read(
    tmp_path, monkeypatch
):
    def reading(name, *, check, **_):
        check(language_model().config)
        pytest.fail("the weights were read")

    monkeypatch.setattr(sources, "load", reading)
    with pytest.raises(UserError, match=r"sae\.d_model=16"):
        start(tmp_path, corpora(tmp_path), config=override(CONFIG, ["sae.d_model=17"]))
    with pytest.raises(UserError, match="layer"):
        start(tmp_path, corpora(tmp_path), config=override(CONFIG, ["sae.layer=5"]))
    assert not (tmp_path / "store").exists()


def test_the_command_refuses_bad_input_in_one_line(tmp_path):
    root = Path(__file__).parents[2]
    for flags, said in (
        (["--corpus", "en=missing.txt,zh=b.txt"], "The corpus missing.txt cannot be read"),
        (["--corpus", "en=a.txt", "--set", "sae.q=3"], "names no field 'q'"),
    ):
        command = [sys.executable, "-m", "experiments.train_sae", "--config"]
        command += [str(root / "configs/gemma3_270m.py"), "--out", str(tmp_path / "out"), *flags]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: ")
        assert said in done.stderr
