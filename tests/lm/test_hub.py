"""Models on the hub: the real `huggingface_hub`, asking a server on this machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_gguf
from hub_process import outcome
from hub_server import COMMIT, Hub, serve
from safetensors.numpy import load, save

from emojax import files
from emojax.lm import gguf

HERE = Path(__file__).parent
ABSENT = "f" * 40


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """The directory of a tiny model."""
    folder = tmp_path_factory.mktemp("model")
    tiny_gguf.write(folder / "tiny.gguf")
    return gguf.convert(folder / "tiny.gguf", files.sha256(folder / "tiny.gguf"), folder)


def repositories(tiny: Path) -> dict[str, dict[str, bytes]]:
    """The tiny model as it may lie on the hub."""
    whole = {path.name: path.read_bytes() for path in tiny.iterdir()}
    weights = whole.pop("model.safetensors")
    tensors = sorted(load(weights).items())
    halves = [dict(tensors[::2]), dict(tensors[1::2])]
    shards = [f"model-{i}-of-2.safetensors" for i in (1, 2)]
    index = {name: shard for shard, half in zip(shards, halves, strict=True) for name in half}
    other = dict.fromkeys(
        (
            "README.md",
            "tokenizer.model",
            "pytorch_model.bin",
            "tf_model.h5",
            "consolidated.safetensors",
            "onnx/model.onnx",
            "original/model.safetensors",
            "modeling_tiny.py",
        ),
        b"unneeded",
    )
    stops = {"generation_config.json": b'{"eos_token_id": [1, 7]}'}
    return {
        "someone/single": whole | other | {"model.safetensors": weights} | stops,
        "someone/sharded": whole
        | other
        | {shard: save(half) for shard, half in zip(shards, halves, strict=True)}
        | {
            "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
            "model.fp16.safetensors": b"unneeded",
        },
        "someone/pickled": whole | other | {"consolidated.safetensors": b"unneeded"},
        "someone/no-tokenizer": whole | {"tokenizer.json": b"{}", "model.safetensors": weights},
        "someone/gated": whole | {"model.safetensors": weights},
    }


def start(command: list[str], home: Path, **environment: str) -> subprocess.Popen:
    python_path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    variables = {"HF_HOME": str(home), "PYTHONPATH": python_path, "JAX_PLATFORMS": "cpu"}
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return subprocess.Popen(
        [sys.executable, *command],
        env=outside | variables | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcomes(cache: Path, names: list[str], home: Path, **environment: str) -> list[str]:
    process = start([str(HERE / "hub_process.py"), str(cache), *names], home, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_models_are_fetched_once_and_nothing_else_of_theirs(tiny, tmp_path):
    expected = outcome(str(tiny), tmp_path)
    assert len(expected) == 64
    home, cache = tmp_path / "home", tmp_path / "cache"
    good = [f"someone/{name}@{COMMIT}" for name in ("single", "sharded")]
    bad = {
        f"someone/single@{ABSENT}": "it has no such commit; mend the revision "
        "(of a commit all 40 digits)",
        f"someone/absent@{COMMIT}": "there is none of that name; mend it or, if it is private, "
        "give a token in HF_TOKEN",
        f"someone/gated@{COMMIT}": "it is gated; accept its terms there and give a token of yours "
        "in HF_TOKEN",
    }
    unusable = [f"someone/{name}@{COMMIT}" for name in ("pickled", "no-tokenizer")]
    with serve(Hub(repositories(tiny), gated=("someone/gated",))) as hub:
        names = [*good, *good, *bad, *unusable]
        found = outcomes(cache, names, home, HF_ENDPOINT=hub.url)
        assert found[:4] == [expected] * 4
        assert found[4:7] == [
            f"The model {name} could not be fetched from the hub: {why}."
            for name, why in bad.items()
        ]
        pickled, no_tokenizer = found[7:]
        assert "has no *.safetensors file" in pickled and "pickled weights are never" in pickled
        assert "tokenizer" in no_tokenizer and "cannot be loaded" in no_tokenizer
        assert not any("\n" in sentence for sentence in found)

        small = {"config.json", "tokenizer.json", "tokenizer_config.json"}
        wanted = {
            "single": small | {"model.safetensors", "generation_config.json"},
            "sharded": small
            | {"model.safetensors.index.json"}
            | {f"model-{i}-of-2.safetensors" for i in (1, 2)},
            "pickled": small,
            "no-tokenizer": small,  # its weights are left where they are
        }
        each = [
            f"someone/{repository}/{name}" for repository in wanted for name in wanted[repository]
        ]
        assert hub.fetched() == sorted(each)
        asked = list(hub.asked)
        # A second process, which could reach the hub and may not.
        offline = outcomes(
            cache, [*good, unusable[0]], home, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1"
        )
        assert offline == [expected, expected, pickled]
        assert hub.asked == asked


def test_what_a_person_sees_who_cannot_reach_it(tiny, tmp_path):
    source = f"someone/single@{COMMIT}"

    def write(name: str, **environment: str) -> subprocess.Popen:
        command = ["-m", "experiments.write", "--model", name, "--prompt", "so"]
        return start(command, tmp_path / "home", EMOJAX_CACHE=str(tmp_path), **environment)

    with serve(Hub(repositories(tiny))) as hub:
        nowhere = write(source, HF_ENDPOINT="http://127.0.0.1:9")  # tried again for half a minute
        offline = write(source, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
        no_commit = write(f"someone/single@{ABSENT}", HF_ENDPOINT=hub.url)
        check = "check the network connection, HF_ENDPOINT and HF_HUB_OFFLINE, and run again."
        running = {
            "it has no such commit; mend the revision (of a commit all 40 digits).": no_commit,
            f"HF_HUB_OFFLINE=0' as environment variable; {check}": offline,
            f"Connection refused; {check}": nowhere,
        }
        for sentence, process in running.items():
            out, err = process.communicate(timeout=300)
            assert process.returncode == 1 and not out
            last = err.strip().splitlines()[-1]
            assert last.startswith("error: The model someone/single@") and last.endswith(sentence)
            assert "Traceback" not in err
        assert hub.fetched() == []
