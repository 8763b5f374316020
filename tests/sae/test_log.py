import importlib.util
import json
import sys
import types

from emojax.files import writable_dir
from emojax.sae import log


def test_a_log_is_cut_back_to_the_step_that_a_run_goes_on_from(tmp_path):
    path = tmp_path / "training_log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4, "lo')
    lines = log.Log(tmp_path, {}, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    lines.write(3, {"step": 3, "loss": 0.5})
    assert json.loads(path.read_text().splitlines()[-1]) == {"step": 3, "loss": 0.5}


def test_in_a_bucket_a_log_is_written_before_each_checkpoint_and_at_the_end(bucket):
    run = writable_dir(bucket / "run")
    lines, path = log.Log(run, {}, 0), run / "training_log.jsonl"
    for step in (1, 2):
        lines.write(step, {"step": step})
    assert path.read_text() == ""
    lines.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    lines.write(3, {"step": 3})
    lines.close()
    again = log.Log(run, {}, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    again.write(3, {"step": 3, "again": True})
    again.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "again": true}\n'


def test_tensorboard_and_wandb_get_every_line_where_they_are_installed(tmp_path, monkeypatch):
    seen = []

    class Writer:
        def __init__(self, folder):
            seen.append(("folder", folder))

        def add_scalar(self, name, value, step):
            seen.append((name, value, step))

        def flush(self):
            pass

    board, summary, wandb = (
        types.ModuleType(name) for name in ("tensorboard", "tensorboard.summary", "wandb")
    )
    summary.Writer = Writer

    def init(**given):
        seen.append(("run", given["config"]))
        return types.SimpleNamespace(log=lambda numbers, step: seen.append((numbers, step)))

    wandb.init = init
    for module in (board, summary, wandb):
        module.__spec__ = importlib.util.spec_from_loader(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    log.Log(tmp_path, {}, 0)
    assert [name for name, *_ in seen] == ["folder"]  # W&B asks for a project
    monkeypatch.setenv("WANDB_PROJECT", "emojax")
    seen.clear()
    log.Log(tmp_path, {"sae": {"k": 4}}, 0).write(7, {"step": 7, "loss": 0.5})
    assert ("folder", str(tmp_path / "tensorboard")) in seen
    assert ("train/loss", 0.5, 7) in seen
    assert ("run", {"sae": {"k": 4}}) in seen
    assert ({"step": 7, "loss": 0.5}, 7) in seen
