import importlib.util
import json
import os
import subprocess
import sys
import types

import pytest

from emojax.errors import UserError
from emojax.files import writable_dir
from emojax.sae import log


def test_a_log_is_cut_back_to_the_step_that_a_run_goes_on_from(tmp_path):
    path = tmp_path / "training_log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    lines = log.Log(tmp_path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    lines.write(3, {"step": 3, "loss": 0.5})
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 3, "loss": 0.5}


def test_in_a_bucket_a_log_is_written_before_each_checkpoint_and_at_the_end(bucket, monkeypatch):
    monkeypatch.setattr(log, "tensorboard", lambda directory: None)  # which would look for it
    run = writable_dir(bucket / "run")
    lines, path = log.Log(run, 0), run / "training_log.jsonl"
    for step in (1, 2):
        lines.write(step, {"step": step})
    assert path.read_text() == ""
    lines.flush()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    lines.write(3, {"step": 3})
    lines.flush()
    again = log.Log(run, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    again.write(3, {"step": 3, "again": True})
    again.flush()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": true}\n'


def test_what_was_measured_ends_the_log_once(tmp_path):
    path = tmp_path / "training_log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    for fvu in (0.3, 0.2):
        with log.Log(tmp_path, 2) as lines:
            lines.measured(2, {"trained": {"fvu": fvu}})
    assert path.read_text().splitlines() == [
        '{"step": 1}',
        '{"step": 2}',
        '{"step": 2, "evaluation": {"trained": {"fvu": 0.2}}}',
    ]


class Recorded:
    """Stands for the packages `tensorboard` and `wandb`, and keeps what they are told."""

    Error = ValueError

    def __init__(self, monkeypatch):
        self.told, self.first = [], 0
        for name in ("tensorboard", "tensorboard.summary", "wandb"):
            module = types.ModuleType(name)
            module.__spec__ = importlib.util.spec_from_loader(name, None)
            module.Writer, module.init, module.Error = self.board, self.init, self.Error
            monkeypatch.setitem(sys.modules, name, module)
        for name in log.WANDB:
            monkeypatch.delenv(name, raising=False)

    def board(self, folder):
        return types.SimpleNamespace(
            add_scalar=lambda name, value, step: self.told.append((name, value, step)),
            flush=lambda: None,
            close=lambda: self.told.append(("closed", folder)),
        )

    def init(self, **given):
        self.told.append(("run", given))
        return types.SimpleNamespace(
            step=self.first,
            log=lambda numbers, step: self.told.append((numbers, step)),
            summary=types.SimpleNamespace(
                update=lambda numbers: self.told.append(("summary", numbers))
            ),
            finish=lambda exit_code: self.told.append(("finished", exit_code)),
        )

    def runs(self):
        return [of[1] for of in self.told if of[0] == "run"]


@pytest.fixture
def recorded(monkeypatch):
    return Recorded(monkeypatch)


def folder_of_run(path):
    path.mkdir()
    (path / "run.json").write_text('{"sae": {"k": 4}}')
    return path


def test_tensorboard_and_wandb_get_every_line_and_what_was_measured(
    tmp_path, monkeypatch, recorded
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = folder_of_run(tmp_path / "k=4")
    with log.Log(run, 0) as lines:
        lines.write(7, {"step": 7, "loss": 0.5})
        lines.measured(9, {"trained": {"fvu": {"raw": 0.25}, "histogram": [1, 2], "none": None}})
    (given,) = recorded.runs()
    assert given["config"] == {"sae": {"k": 4}}
    assert (given["project"], given["name"], given["dir"]) == ("emojax", "k=4", str(run))
    told = recorded.told
    assert ("train/loss", 0.5, 7) in told
    assert ({"step": 7, "loss": 0.5}, 7) in told
    assert ("evaluation/trained/fvu/raw", 0.25, 9) in told
    assert ("summary", {"evaluation/trained/fvu/raw": 0.25}) in told
    assert told[-2:] == [("closed", str(run / "tensorboard")), ("finished", 0)]


def test_tensorboard_itself_reads_what_was_written(tmp_path):
    """By the real package, over an interruption."""
    reader = "tensorboard.backend.event_processing.event_accumulator"
    events = pytest.importorskip(reader, reason="needs the extra test")
    for first, steps in ((0, (1, 2)), (2, (3,))):
        with log.Log(tmp_path, first) as lines:
            for step in steps:
                lines.write(step, {"step": step, "loss": 0.5 / step})
    with log.Log(tmp_path, 3) as lines:
        lines.measured(3, {"trained": {"fvu": 0.25, "histogram": [1, 2]}})
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()

    def scalars(name):
        return [(told.step, float(told.tensor_proto.float_val[0])) for told in found.Tensors(name)]

    names = {"train/step", "train/loss", "evaluation/trained/fvu"}
    assert set(found.Tags()["tensors"]) == names
    assert scalars("train/loss") == [(1, 0.5), (2, 0.25), (3, pytest.approx(0.5 / 3))]
    assert scalars("evaluation/trained/fvu") == [(3, 0.25)]


def test_each_run_of_a_sweep_is_one_of_wandb_and_goes_on_as_itself(tmp_path, monkeypatch, recorded):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    one, other = (folder_of_run(tmp_path / name) for name in ("one", "other"))
    with log.Log(one, 0), log.Log(other, 0):
        pass
    recorded.first = 6  # what W&B has of it: up to step 5
    with pytest.raises(RuntimeError), log.Log(one, 4) as lines:
        for step in (5, 6):
            lines.write(step, {"step": step})
        raise RuntimeError("power cut")
    assert recorded.told[-1] == ("finished", 1)
    ids = [given["id"] for given in recorded.runs()]
    assert ids[0] == ids[2] != ids[1]
    assert all(given["reinit"] == "create_new" for given in recorded.runs())
    assert all(given["project"] == "mine" for given in recorded.runs())
    assert [of for of in recorded.told if isinstance(of[0], dict)] == [({"step": 6}, 6)]


def test_wandb_is_left_alone_until_it_is_asked_for(tmp_path, monkeypatch, recorded):
    with log.Log(tmp_path, 0):
        pass
    assert not recorded.runs()

    def refusing(**given):
        raise recorded.Error("No API key configured.")

    monkeypatch.setattr(sys.modules["wandb"], "init", refusing)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with pytest.raises(UserError, match=r"not start \(No API key configured\); log in to it"):
        log.Log(folder_of_run(tmp_path / "run"), 0)


OFFLINE = """
import sys
from pathlib import Path
from emojax.sae import log
for name in ("a", "b", "a"):
    with log.Log(Path(sys.argv[1], name), 0) as lines:
        lines.write(1, {"step": 1, "loss": 0.5})
        lines.measured(1, {"trained": {"fvu": 0.25}})
"""


def test_wandb_itself_keeps_two_runs_of_one_process_apart(tmp_path):
    """Offline, by the real package."""
    pytest.importorskip("wandb", reason="wandb, which no extra brings, is not installed")
    for name in ("a", "b"):
        folder_of_run(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path)],
        env=os.environ | {"WANDB_MODE": "offline"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kept = {
        name: [path.stem for path in (tmp_path / name).glob("wandb/offline-run-*/run-*.wandb")]
        for name in ("a", "b")
    }
    for name, count in (("a", 2), ("b", 1)):
        assert kept[name] == ["run-" + (tmp_path / name / "wandb_id").read_text()] * count
    assert kept["a"][0] != kept["b"][0]
