"""The model card of an artefact, made from its config and its evaluation."""

from collections.abc import Mapping
from typing import Any

# What is measured: the trained one and its controls (`emojax.sae.state`).
DICTIONARIES = ("trained", "random", "untrained")

# The corpora of the shipped dictionary: what is said of their text is said of no other.
SHIPPED = {
    "2e2552f444dfd8d09db8c4886950384aaf29497130ad6b814a4302c76be1bca1",
    "1c254a142be5c00e80d819b9ae1bbd36d94b2eeb8f4b1271846508d57e57d9c5",
    "c587bbe42199e4aef7bc1e2820916f4615ea30159f03a00a206aa73e1cd56001",
}


def render(record: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """README.md of an artefact.

    Args:
      record: its `config.json`.
      evaluation: its `evaluation.json`.
    """
    sae, model, data, train = (record[key] for key in ("sae", "model", "data", "train"))
    sources = "\n".join(
        f"| {source['language']} | `{source['file']}` | `{source['sha256']}` |"
        for source in record["corpora"]
    )
    mix = ", ".join(
        f"{language} {weight:.0%}"
        for language, weight in zip(data["languages"], data["weights"], strict=True)
    )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"""# Sparse autoencoder for {model["name"]}, layer {sae["layer"]}, {sae["site"]}

{sae["n_latents"]:,} latents, {_sparsity(sae)}, on activations of width {sae["d_model"]} \
(layers count from 0). Input scale: `{sae["input_scale"]}`. Layout, file format and maths: \
`emojax/sae/coder.py` and `emojax/sae/artefact.py`. This file is made from `config.json` and \
`evaluation.json`.

## How it was made

    {record["command"]}

* Model weights (SHA-256): `{model["fingerprint"]}`
* Text: {record["tokens"]["train"]:,} tokens ({mix}; {data["short_share"]:.0%} of them in rows of \
one sentence or line), {record.get("passes", train["epochs"]):.3g} passes in batches of \
{train["batch_tokens"]:,}; documents with {record["tokens"]["heldout"]:,} tokens were held out. \
No human rating was read.
* Versions: {versions}

| language | file | SHA-256 |
|---|---|---|
{sources}

## Held-out measurements

Beside it, controls of the same size with tied encoders and k latents per token: a random one, its
unit rows spread as the activations are (the same covariance) and its encoder shrunk so that the
least of a sample is left, and the untrained one, unit rows in all directions, where training
started.

{_table(evaluation)}

{evaluation["trained"]["massive_tokens"]} of {evaluation["trained"]["tokens"]:,} held-out tokens \
are massive (norm above 4 × the median). FVU: fraction of variance unexplained. \
{_losses(sae, evaluation)}

How many of the trained latents fire on which share of the held-out tokens:

{_densities(evaluation["trained"])}

## Limits

{_text(record)} The model's weights have their own licence.
"""


def _text(record: Mapping[str, Any]) -> str:
    """What is known of the text, which the measurements above are of."""
    if {source["sha256"] for source in record["corpora"]} == SHIPPED:
        return (
            "Its English is that of novels of the 19th and early 20th century and of short online "
            "posts, its Chinese that of emotional-support dialogues; on other text it explains "
            "less."
        )
    return (
        "It was trained and measured on text of the corpora above; how much it explains of "
        "other text was not measured."
    )


def _sparsity(sae: Mapping[str, Any]) -> str:
    """What decides which latents are active. Records from before there was a choice are TopK."""
    names = {"topk": "TopK", "batch_topk": "BatchTopK", "jumprelu": "JumpReLU", "relu": "ReLU"}
    architecture = sae.get("architecture", "topk")
    name = names.get(architecture, architecture.capitalize())
    return name if architecture in ("gated", "relu") else f"{name} with k = {sae['k']}"


def _table(evaluation: Mapping[str, Any]) -> str:
    names = [name for name in DICTIONARIES if name in evaluation]
    of = [evaluation[name] for name in names]

    def row(name: str, values: list[Any], form: str = ".4f") -> str:
        cells = ("–" if value is None else format(value, form) for value in values)
        return f"| {name} | {' | '.join(cells)} |"

    def by_language(name: str, key: str, form: str) -> list[str]:
        found = [m.get(f"{key}_by_language", {}) for m in of]
        return [
            row(f"{name}, {language}", [m[language] for m in found], form) for language in found[0]
        ]

    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines.append(row("active latents per token (L0)", [m["l0"] for m in of], ".1f"))
    lines += by_language("active latents per token (L0)", "l0", ".1f")
    spaces = {"raw": "raw units", "unit_norm": "unit vectors"}
    kinds = {"without_massive": "without massive tokens", "all": "all tokens"}
    for space, space_name in spaces.items():
        for kind, kind_name in kinds.items():
            values = [m["fvu"][space][kind] for m in of]
            lines.append(row(f"FVU, {space_name}, {kind_name}", values))
    lines += by_language("FVU, unit vectors without massive tokens", "fvu", ".4f")
    lines.append(row("latents that never fire", [m["dead_share"] for m in of], ".2%"))
    lines += by_language("latents that never fire", "dead_share", ".2%")
    for language, measured in evaluation["loss"].items():
        values = [measured["recovered"][name] for name in names]
        lines.append(row(f"loss recovered, {language}", values))
        values = [measured["recovered_from_mean"][name] for name in names]
        lines.append(row(f"loss recovered from mean ablation, {language}", values))
        if "kl" in measured:
            values = [measured["kl"][name] for name in names]
            lines.append(row(f"KL from the clean model (nats), {language}", values, ".3f"))
        entropy = measured["cross_entropy"]
        values = [entropy[name] for name in names]
        clean = f"cross entropy spliced, {language} (clean {entropy['clean']:.3f}, zeroed "
        lines.append(row(f"{clean}{entropy['zero_ablated']:.3f})", values, ".3f"))
    return "\n".join(lines)


def _losses(sae: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """What the losses mean, or why there are none."""
    if evaluation["loss"]:
        return "Loss recovered: 1 = the model's own loss, 0 = the loss with the site zeroed."
    return (
        "There is no cross entropy and no KL of the model with the dictionary spliced in, because "
        f"a transcoder reads one site ({sae['site']}) and makes another ({sae['target_site']}) of "
        "it, and a splice puts back what it read where it read it."
    )


def _densities(measured: Mapping[str, Any]) -> str:
    """Latents by the share of tokens on which they fire: of all tokens, and of each language's."""
    edges = measured["density"]["log10_edges"]
    columns = {"all tokens": measured["density"]["latents"]}
    columns |= {n: c for n, c in measured.get("density_by_language", {}).items() if c is not None}
    lines = [f"| share of tokens | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for low, high, *counts in zip(edges[:-1], edges[1:], *columns.values(), strict=True):
        if any(counts):
            cells = " | ".join(f"{count:,}" for count in counts)
            lines.append(f"| {10**low:.1g} to {10**high:.1g} | {cells} |")
    return "\n".join(lines)
