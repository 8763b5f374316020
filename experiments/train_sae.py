"""Captures activations, trains a dictionary on them, measures it, and writes it as an artefact.

Each stage goes on from what an interrupted run of the same command left behind.

Activations are stored first, and read for every pass; `--set activations.streamed=true` captures
them while the dictionary is trained, and stores only those of held-out text. `--sweep
sae.layer=6,9,12 --sweep train.seed=0,1` trains a dictionary for each of the six combinations, one
after another, from one capture of all three layers; each gets a folder of its name in --out and
--artefact, and one that is finished is not trained again. --out, --artefact and --store may be
`gs://` addresses (extra `gcs`), which all hosts of a pod see.

The language model is read in float32, or in what `--set activations.model_dtype=bfloat16` says, and
stands whole on each device that captures unless `activations.model_shards` splits it over several.

With `--distributed` every host runs the same command. On Cloud TPU, GKE and Slurm the hosts find
each other; elsewhere `--coordinator`, `--processes` and `--process` say who is where.
"""

import json
import shlex
from pathlib import Path

from absl import flags

from emojax import config as configs
from emojax import distributed
from emojax.errors import run
from emojax.files import place
from emojax.sae import corpus, pipeline

CONFIG = flags.DEFINE_string("config", None, "A file of configs/.", required=True)
SET = flags.DEFINE_multi_string("set", [], "An override such as sae.k=32; may be repeated.")
SWEEP = flags.DEFINE_multi_string("sweep", [], "Values such as sae.layer=6,9; may be repeated.")
CORPUS = flags.DEFINE_string(
    "corpus",
    None,
    "Text by language: files, folders, patterns, data sets on the Hugging Face hub, as in "
    "en=novels.txt.gz,en=posts.jsonl:body,en='wiki/*.parquet',zh=hf:owner/name@revision.",
    required=True,
)
OUT = flags.DEFINE_string("out", None, "The run's folder (default: runs/train_sae/<config>).")
STORE = flags.DEFINE_string("store", None, "Stored activations (default: in the cache).")
ARTEFACT = flags.DEFINE_string("artefact", None, "The result's folder (default: <out>/artefact).")


def main(_):
    """Runs the pipeline and prints what it measured."""
    distributed.from_flags()
    config = configs.load(Path(CONFIG.value), SET.value)
    corpora = corpus.parse_corpora(CORPUS.value)
    # The record names files, not where this machine keeps them.
    texts = ",".join(f"{language}={corpus.name(path)}" for language, path in corpora)
    words = ["python", "-m", "experiments.train_sae", "--config", CONFIG.value]
    words += [word for text in SET.value for word in ("--set", text)]
    words += [word for text in SWEEP.value for word in ("--sweep", text)] + ["--corpus", texts]
    out = place(OUT.value or f"runs/train_sae/{Path(CONFIG.value).stem}")
    store = STORE.value
    evaluations = pipeline.run_all(
        configs.sweep(config, SWEEP.value),
        corpora,
        out=out,
        artefact=place(ARTEFACT.value) if ARTEFACT.value else out / "artefact",
        store_dir=Path(store) if store and "://" not in store else store,
        command=shlex.join(words),
    )
    print(json.dumps(evaluations if SWEEP.value else evaluations[""], indent=2))


if __name__ == "__main__":
    run(main)
