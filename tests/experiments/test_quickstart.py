"""The main job as a person runs it: a process, real weights, files, interruptions, bad input."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emojax.report import results as schema
from emojax.steer import vectors

pytestmark = pytest.mark.model

SMALL = {
    "study.reading.words_per_language": "120",
    "study.reading.templates_en": "The word {}",
    "study.reading.templates_zh": "词语{}",
    "study.writing.prompts_en": "The letter arrived and",
    "study.writing.prompts_zh": "我看着窗外，",
    "study.writing.unsteered": "2",
    "study.writing.max_new_tokens": "4",
    "study.thresholds.q": "0.3",
    "study.thresholds.features": "0",
    "study.permutations": "20",
    "study.bootstraps": "5",
    "study.null_permutations": "2",
    "study.outside_draws": "1",
}


def command(output: Path, **settings: str) -> list[str]:
    chosen = SMALL | {name.replace("__", "."): value for name, value in settings.items()}
    overrides = [f"--set={name}={value}" for name, value in chosen.items()]
    return [sys.executable, "-m", "experiments.quickstart", f"--output={output}", *overrides]


def run(output: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(output, **settings), capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("quickstart")
    done = run(output)
    assert done.returncode == 0, done.stderr[-2000:]
    return output, done.stdout


def numbers(value: object) -> list[float]:
    """Every number in a JSON value, in order."""
    if isinstance(value, dict):
        return [n for key in value for n in numbers(value[key])]
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


def assert_same(one: schema.Results, other: schema.Results) -> None:
    """Every number but those of the run itself, to 1e-3."""
    parts = set(schema.Results.__annotations__) - {"run", "notes"}
    assert parts >= {"cross_language", "scatters", "steering"}
    for part in parts:
        assert len(numbers(one[part])) > 0, part
        assert numbers(one[part]) == pytest.approx(numbers(other[part]), abs=1e-3), part


def test_it_leaves_a_report_the_results_and_a_table(finished):
    output, printed = finished
    found = schema.read(output / "results.json")
    assert {x["language"] for x in found["ratings"]} == {"en", "zh"}
    assert len(found["steering"]["rows"]) == 2 * (2 + 3 * 26)
    assert len(vectors.load(output / "steering.safetensors")) == 3 * 26
    assert (output / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "| Pearson r with human ratings" in printed
    assert found["bars"]


def test_a_rerun_gives_the_same_numbers(finished):
    output, _ = finished
    before = schema.read(output / "results.json")
    kept = {path: path.stat().st_mtime_ns for path in (output / "cache").iterdir()}
    assert run(output).returncode == 0
    after = schema.read(output / "results.json")
    assert_same(after, before)
    assert {path: path.stat().st_mtime_ns for path in (output / "cache").iterdir()} == kept


def test_ctrl_c_and_a_rerun_goes_on_and_another_folder_gives_the_same(
    finished: tuple[Path, str], tmp_path: Path
):
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("cache/residuals-*.npy")):
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert b"run the same command again" in said
    assert b"Traceback" not in said
    assert not (tmp_path / "results.json").exists()
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/residuals-*.npy")}
    assert first
    assert run(tmp_path).returncode == 0
    for path, written in first.items():
        assert path.stat().st_mtime_ns == written
    # Nothing of the first run was at hand here: residuals and texts were made anew.
    assert_same(schema.read(tmp_path / "results.json"), schema.read(finished[0] / "results.json"))


def test_an_emotion_with_too_few_features_leaves_earlier_results(finished):
    output, _ = finished
    before = (output / "results.json").read_bytes()
    done = run(output, study__thresholds__features="4000")
    assert done.returncode == 1
    assert "error: Too few features" in done.stderr
    assert "Traceback" not in done.stderr
    assert (output / "results.json").read_bytes() == before


def test_bad_norms_are_named_before_the_model_is_loaded_and_leave_earlier_results(
    finished, tmp_path: Path
):
    output, _ = finished
    before = (output / "results.json").read_bytes()
    norms = tmp_path / "mine.csv"
    norms.write_text("Word,V,A\njoy,8.1,6.2\ngrief,nan,5.1\n")
    columns = {
        "study.norms_en.word": "Word",
        "study.norms_en.valence": "V",
        "study.norms_en.arousal": "A",
    }
    done = run(output, **{"study.norms_en.path": str(norms)}, **columns)
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "mine.csv gives the word 'grief' at line 3 the valence 'nan'" in said
    assert "Traceback" not in done.stderr
    assert "check the input" in done.stdout
    assert "load the model" not in done.stdout
    assert (output / "results.json").read_bytes() == before


def test_bad_input_is_one_sentence(tmp_path: Path):
    words = tmp_path / "mine.toml"
    words.write_text('language = "en"\n[words]\njoy = ["joy", "glad"]\n')
    done = run(tmp_path / "own", **{"study.concepts_en": str(words)})
    assert done.returncode == 1
    assert "mine.toml has missing or unknown categories" in done.stderr
    assert "load the model" not in done.stdout

    done = run(tmp_path, study__sae="nowhere")
    assert done.returncode == 1
    assert "error: There is no dictionary at nowhere" in done.stderr

    done = run(tmp_path, study__seeed="1")
    assert done.returncode == 1
    assert "seeed" in done.stderr

    (tmp_path / "taken").write_text("a file")
    done = run(tmp_path / "taken")
    assert done.returncode == 1
    assert "cannot be written to" in done.stderr
    for line in done.stderr.splitlines():
        assert not line.startswith("Traceback")


def test_help_names_the_flags():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.quickstart", "--help"],
        capture_output=True,
        text=True,
    )
    for flag in (
        "--config",
        "--set",
        "--output",
        "study.norms_en.path",
        "study.concepts_en",
        "bars",
    ):
        assert flag in done.stdout
    assert "report.html" in done.stdout


def test_results_are_plain_json(finished):
    output, _ = finished
    plain = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert plain["schema"] == schema.SCHEMA
