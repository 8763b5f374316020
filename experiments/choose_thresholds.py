"""Chooses what a latent must reach to be an emotion feature, on words that no result is made of.

    python -m experiments.choose_thresholds

The thresholds of `emojax.emotion.features` decide which latents span the emotion space. They are
chosen on *development words*: rated words that are neither concept nor control words, nor among the
words on which the quickstart predicts ratings, nor kin to any of these; the rule is that of
`emojax.study.thresholds.choose`. Prints a table and writes `thresholds.json`.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from emojax import config, errors, files
from emojax.lm import sources
from emojax.sae import artefact
from emojax.study import run, thresholds

_CONFIG = flags.DEFINE_string("config", "configs/gemma3_270m.py", "The study's configuration.")
_OUTPUT = flags.DEFINE_string("output", "runs/choose_thresholds", "Folder of the result.")


def main(argv: Sequence[str]) -> None:
    """Scores every pair of thresholds, prints the table and the choice."""
    del argv
    study = config.load(Path(_CONFIG.value)).study
    output = files.writable_dir(Path(_OUTPUT.value))
    lm = sources.load(study.model)
    trained = artefact.load(study.sae, lm)
    material = {
        language: run.read(study, lm, trained, language, output / "cache", development=True)
        for language in study.languages
    }
    print(
        "| density | coverage | latents | fewest | valence | arousal | untrained valence | mean |"
    )
    print("|---|---|---|---|---|---|---|---|")
    found = []
    for row in thresholds.rows(study, material):
        found.append(row)
        pairs = [
            ", ".join(f"{r:.3f}" for r in each)
            for each in (row.valence, row.arousal, row.untrained_valence)
        ]
        print(
            f"| {row.density} | {row.coverage} | {', '.join(map(str, row.latents))} | {row.fewest} "
            f"| {' | '.join(pairs)} | {row.mean:.3f} |",
            flush=True,
        )
    chosen = thresholds.choose(found, study.thresholds.features)
    print(f"\nchosen: density {chosen.density}, coverage {chosen.coverage}")
    report = {
        "words": {language: len(m.tested.words) for language, m in material.items()},
        "rows": [dataclasses.asdict(row) for row in found],
        "chosen": dataclasses.asdict(chosen),
    }
    with files.atomic(output / "thresholds.json") as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
