"""A run whose folder is in a bucket: an emulator of Google Cloud Storage, over HTTP.

The run's files go there through etils.epath and gcsfs, its checkpoints through Orbax, and its
activations through TensorStore.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from sae_toys import digest, timeless, toy_run

from emojax.sae import trainer

pytest.importorskip("gcp_storage_emulator", reason="needs the extra test")
pytest.importorskip("gcsfs", reason="needs the extra gcs")
import gcs_emulator

PROGRAM = str(Path(__file__).parent / "killed_run.py")


@pytest.fixture
def address():
    """Where the emulator listens."""
    with gcs_emulator.running() as address:
        yield address


def objects(address: str) -> dict[str, int]:
    """Name and size of all that the bucket holds."""
    with urllib.request.urlopen(f"{address}/storage/v1/b/bucket/o") as answer:
        return {item["name"]: int(item["size"]) for item in json.load(answer).get("items", ())}


def read(address: str, name: str) -> bytes:
    quoted = urllib.parse.quote(name, safe="")
    with urllib.request.urlopen(f"{address}/storage/v1/b/bucket/o/{quoted}?alt=media") as answer:
        return answer.read()


def write(address: str, name: str, content: bytes) -> None:
    query = urllib.parse.urlencode({"uploadType": "media", "name": name})
    url = f"{address}/upload/storage/v1/b/bucket/o?{query}"
    urllib.request.urlopen(urllib.request.Request(url, content, method="POST")).close()


def test_killed_twice_and_a_checkpoint_cut_short_it_goes_on_bitwise(address, tmp_path):
    whole = toy_run("stored", tmp_path)
    trainer.train(*whole, tmp_path / "run")
    wanted = (tmp_path / "run" / "training_log.jsonl").read_text()
    environment = os.environ | gcs_emulator.environment(address)

    def run(*kill: str) -> subprocess.CompletedProcess:
        command = [sys.executable, PROGRAM, "gs://bucket/folder", "stored", *kill]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, timeout=400
        )

    for kill in (("saving", "20"), ("step", "25")):
        done = run(*kill)
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert "goes on after step 10 of 40" in done.stderr
    # Only what is whole has this object.
    committed = "folder/run/checkpoints/20/commit_success.txt"
    there = objects(address)
    assert committed in there
    assert len(read(address, "folder/run/training_log.jsonl").splitlines()) == 20
    saved = {name: size for name, size in there.items() if "/checkpoints/20/" in name}
    largest = max(saved, key=saved.__getitem__)
    write(address, largest, read(address, largest)[: saved[largest] // 2])
    done = run()
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["FINISHED", digest(tmp_path / "run", *whole)]
    assert "gs://bucket/folder/run/checkpoints/20 is damaged" in done.stderr
    assert "goes on after step 10 of 40" in done.stderr
    there = objects(address)
    moved = {name.replace("/checkpoints/", "/damaged/") for name in saved}
    assert moved | {"folder/run/damaged/20.txt"} == {name for name in there if "/damaged/" in name}
    # The last ones are kept, and nothing of the others.
    kept = {name.split("/")[3] for name in there if name.startswith("folder/run/checkpoints/")}
    assert kept == {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    found = read(address, "folder/run/training_log.jsonl").decode()
    assert timeless(found) == timeless(wanted)
