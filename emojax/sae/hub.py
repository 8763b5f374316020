"""Data sets on the Hugging Face hub → documents, streamed: nothing is kept on the disk.

`hf:owner/name[/config][@revision][:split][:column]`, for instance
`hf:wikimedia/wikipedia/20231101.zh@b04c8d1:train:text`. A document is an example. Without a
revision the newest commit is taken, and recorded.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emojax.errors import UserError
from emojax.lm.sources import hub_refusal
from emojax.sae.documents import FIELD, Document, Source, cut

PREFIX = "hf:"
SPEC = re.compile(
    r"hf:(?P<name>[\w.-]+/[\w.-]+)(/(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?"
    r"(:(?P<split>[^:]+))?(:(?P<column>[^:]+))?"
)


def find(language: str, path: Path) -> Source:
    """Asks the hub for the data set's commit and reads its first example.

    Raises:
      UserError: the name cannot be read, the package `datasets` is missing, the hub cannot be
        reached, or the data set has no such config, split or column.
    """
    parts = SPEC.fullmatch(str(path))
    if parts is None:
        raise UserError(
            f"The corpus {path} cannot be read; write hf:owner/name, and as far as needed /config, "
            "@revision, :split and :column after it."
        )
    _datasets(path)
    # Slow to import, so only where the hub is meant.
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().dataset_info(parts["name"], revision=parts["revision"]).sha
    except Exception as error:  # the errors of its HTTP client share no base
        raise _unreachable(path, error) from None
    source = Source(language, path, "hub", parts["column"] or FIELD, (), str(commit))
    try:
        example = next(iter(load(source)), None)
    except Exception as error:
        raise _unreachable(path, error) from None
    if example is None:
        raise UserError(f"The corpus {path} holds no text; give another split.")
    if not isinstance(example.get(source.field), str):
        raise UserError(
            f"The corpus {path} has no text in a column {source.field!r} (it has "
            f"{', '.join(example)}); name the split and the column as in hf:owner/name:train:text."
        )
    return source


def load(source: Source) -> Any:
    """The `datasets.IterableDataset` of a source, at the commit that was found."""
    parts = SPEC.fullmatch(str(source.path))
    assert parts is not None, "find() has read it"
    return _datasets(source.path).load_dataset(
        parts["name"],
        parts["config"],
        split=parts["split"] or "train",
        revision=source.identity,
        streaming=True,
    )


def each_document(source: Source) -> Iterator[Document]:
    """All documents of a source, in order, but those without text."""
    return filter(None, documents(source, iter(load(source))))


def documents(source: Source, examples: Iterator[Mapping[str, Any]]) -> Iterator[Document]:
    """Each example's document.

    Raises:
      UserError: the hub gives no more although there is more.
    """
    while True:
        try:
            example = next(examples)
        except StopIteration:
            return
        except Exception as error:
            raise _unreachable(source.path, error) from None
        yield cut(example[source.field])


def _datasets(path: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"The corpus {path} is read by the package datasets, which is missing; run: "
            "pip install -e '.[data]'"
        ) from None
    return datasets


def _unreachable(path: Path, error: Exception) -> UserError:
    if why := hub_refusal(error):
        return UserError(f"The corpus {path} could not be read from the hub: {why}.")
    problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"The corpus {path} could not be read from the hub ({problem}); check its name, config, "
        "revision and split, the network connection, HF_HUB_OFFLINE and, if it is gated, HF_TOKEN."
    )
