"""Results that nobody measured: drawn from a seed, to test the report with. Never shipped."""

import numpy as np

from emojax.emotion.concepts import CATEGORIES
from emojax.report import results
from emojax.report.results import Results

WORDS = {
    "en": ["plum", "kettle", "ribbon", "lantern", "gravel"],
    "zh": ["桌子", "天空", "河流", "石头", "窗户"],
}
SENTENCES = {
    "en": "The synthetic kettle sang about a plum, and nobody in the test fixture minded at all.",
    "zh": "这是一段合成的测试文字，桌子旁边有一条河流，没有任何真实的测量结果。",
}


def make(seed: int = 0) -> Results:
    random = np.random.default_rng(seed)

    def number(low: float, high: float) -> float:
        return round(float(random.uniform(low, high)), 4)

    def estimate(low: float, high: float) -> results.SteeringEstimate:
        value = number(low, high)
        covers = "synthetic prompts and emotions"
        return {"value": value, "ci_low": value - 0.05, "ci_high": value + 0.06, "covers": covers}

    def latents(language: str) -> list[results.Latent]:
        return [
            {
                "latent": int(latent),
                "effect": number(0.6, 1),
                "specificity": number(0.6, 1),
                "p": 0.0001,
                "q": 0.0021,
                "coverage": number(0.2, 0.9),
                "density": number(0.001, 0.05),
                "top_words": [str(word) for word in random.permutation(WORDS[language])],
            }
            for latent in random.choice(60, size=int(random.integers(3, 12)), replace=False)
        ]

    categories: list[results.CategoryFeatures] = []
    for emotion in CATEGORIES:
        en, zh = latents("en"), latents("zh")
        shared = {x["latent"] for x in en} & {x["latent"] for x in zh}
        categories.append(
            {"emotion": emotion, "name_zh": "测试", "en": en, "zh": zh, "shared": sorted(shared)}
        )

    ratings: list[results.Rating] = []
    scatters: list[results.Scatter] = []
    centres = {
        "space": 0.74,
        "intersection": 0.7,
        "all_latents": 0.8,
        "outside": 0.5,
        "untrained": 0.55,
        "dense": 0.86,
        "length": 0.1,
        "transfer": 0.6,
    }
    for language in ("en", "zh"):
        for target in ("valence", "arousal"):
            for name, centre in centres.items():
                r = centre + number(-0.1, 0.05) - 0.15 * (target == "arousal")
                ratings.append(
                    {
                        "language": language,
                        "target": target,
                        "feature_set": name,
                        "n_features": int(random.integers(2, 900)),
                        "n_words": 1500,
                        "r": r,
                        "ci_low": r - 0.03,
                        "ci_high": r + 0.02,
                        "r2": r * r,
                        "null": {"mean": 0.0, "high": 0.05, "p": 0.001, "n_permutations": 1000},
                    }
                )
            human = random.uniform(1, 9, 1500)
            predicted = 5 + 0.6 * (human - 5) + random.normal(0, 1, 1500)
            scatters.append(
                {
                    "language": language,
                    "target": target,
                    "feature_set": "space",
                    "words": [f"w{i}" for i in range(1500)],
                    "human": [round(x, 3) for x in human.tolist()],
                    "predicted": [round(x, 3) for x in predicted.tolist()],
                }
            )

    spaces: list[results.Space] = []
    place = random.normal(size=(len(CATEGORIES), 4))
    for language in ("en", "zh"):
        coords = place + 0.4 * random.normal(size=place.shape)
        distance = np.linalg.norm(coords[:, None] - coords[None], axis=-1)
        spaces.append(
            {
                "language": language,
                "n_latents": 120,
                "emotions": list(CATEGORIES),
                "coords": coords.tolist(),
                "explained_variance": [0.31, 0.17, 0.09, 0.05],
                "valence": (5 + 1.5 * coords[:, 0]).tolist(),
                "arousal": (5 - coords[:, 1]).tolist(),
                "ratings_scale": "made-up scale, 1–9",
                "correlations": [
                    {
                        "component": component,
                        "target": target,
                        "r": number(-0.9, 0.9),
                        "ci_low": -0.95,
                        "ci_high": 0.95,
                        "p": number(0, 0.2),
                    }
                    for component in (1, 2, 3, 4)
                    for target in ("valence", "arousal")
                ],
                "recovered": [
                    {"target": "valence", "r": 0.8, "ci_low": 0.6, "ci_high": 0.9, "p": 0.0002},
                    {"target": "arousal", "r": 0.4, "ci_low": 0.0, "ci_high": 0.7, "p": 0.04},
                ],
                "rdm": (distance / distance.max()).tolist(),
                "rdm_measure": "1 − Pearson r",
            }
        )

    prompts: list[results.Prompt] = [
        {"language": "en", "text": "I opened the door and"},
        {"language": "zh", "text": "我打开门，"},
        {"language": "en", "text": "My neighbour told me that"},
        {"language": "zh", "text": "邻居告诉我，"},
    ]
    rows: list[results.Continuation] = []
    for index, prompt in enumerate(prompts):
        language = prompt["language"]
        for method in ("none", "sae", "random"):
            for emotion in [None, None] if method == "none" else CATEGORIES:
                held = [] if random.uniform() < 0.6 else [WORDS[language][0]]
                rows.append(
                    {
                        "prompt": index,
                        "method": method,
                        "emotion": emotion,
                        "text": " " + SENTENCES[language] * int(random.integers(1, 3)),
                        "perplexity": number(10, 60),
                        "perplexity_ratio": number(0.7, 4),
                        "distinct_2": number(0.5, 1),
                        "repetition": number(0, 0.5),
                        "emotion_words": None if emotion is None else held,
                        "language_switch": False,
                        "judged": "joy" if language == "en" else None,
                        "judged_intended": None
                        if emotion is None or language == "zh"
                        else emotion == "joy",
                    }
                )
    metrics: results.SaeMetrics = {
        "l0": 64.0,
        "fvu": 0.07,
        "fvu_all": 0.03,
        "dead_share": 0.005,
        "loss_recovered": 0.96,
        "loss_recovered_from_mean": 0.93,
        "n_tokens": 20_000,
    }
    found: Results = {
        "schema": results.SCHEMA,
        "run": {
            "command": "python -m experiments.quickstart",
            "started": "2000-01-01T00:00:00Z",
            "machine": "a machine that does not exist",
            "versions": {"emojax": "0.0", "jax": "0.0"},
            "seeds": {"ratings": 0, "steering": 1},
            "config": {"model": "synthetic", "sae": {"k": 64}},
            "seconds": {"capture": 61.2, "ratings": 30.0, "steering": 12.3},
            "peak_memory_gib": 1.5,
            "sources": [
                {
                    "name": "Synthetic norms",
                    "role": "English ratings",
                    "licence": "none: made up",
                    "url": "https://example.org/norms",
                    "sha256": "0" * 64,
                },
                {
                    "name": "Synthetic model",
                    "role": "language model",
                    "licence": "none: made up",
                    "url": None,
                    "sha256": None,
                },
            ],
        },
        "model": {
            "name": "Synthetic-1m",
            "architecture": "made up",
            "n_layers": 18,
            "d_model": 640,
            "vocab_size": 262144,
            "n_parameters": 268_098_176,
            "layer": 9,
            "site": "resid_post",
            "fingerprint": "ab" * 32,
        },
        "sae": {
            "name": "synthetic dictionary",
            "n_latents": 4096,
            "k": 64,
            "training_tokens": 16_600_000,
            "fingerprint": "cd" * 32,
            "measured_on_these_weights": True,
            "trained": {**metrics},
            "untrained": {
                **metrics,
                "fvu": 0.64,
                "fvu_all": 0.4,
                "loss_recovered": -2.5,
                "loss_recovered_from_mean": None,
            },
        },
        "features": {
            "rule": {"q": 0.05, "min_effect": 0.8, "min_coverage": 0.2, "max_density": 0.05},
            "words_per_category": {"en": 20.0, "zh": 20.0},
            "control_words": [
                {
                    "language": language,
                    "n_control_words": 600,
                    "concept_length": 7.1,
                    "control_length": 7.1,
                    "largest_length_gap": 0.0,
                    "concept_zipf": 3.8,
                    "control_zipf": 3.8,
                    "largest_zipf_gap": 0.12,
                }
                for language in ("en", "zh")
            ],
            "passing": [
                {"language": language, "trained": 140, "untrained": 60, "shuffled": 2}
                for language in ("en", "zh")
            ],
            "categories": categories,
        },
        "ratings": ratings,
        "few_latents": [
            {
                "language": language,
                "target": target,
                "dictionary": dictionary,
                "n_latents": count,
                "r": 0.5,
                "ci_low": 0.4,
                "ci_high": 0.6,
            }
            for language in ("en", "zh")
            for target in ("valence", "arousal")
            for dictionary in ("trained", "untrained")
            for count in (1, 10)
        ],
        "differences": [
            {
                "language": language,
                "target": "valence",
                "one": "space",
                "other": other,
                "r": 0.12,
                "ci_low": 0.08,
                "ci_high": 0.16,
            }
            for language in ("en", "zh")
            for other in ("outside", "untrained", "intersection")
        ],
        "scatters": scatters,
        "spaces": spaces,
        "cross_language": {
            "rdm_spearman": {"value": 0.55, "ci_low": 0.4, "ci_high": 0.7},
            "rdm_p": 0.0001,
            "jaccard_mean": 0.3,
            "jaccard_null": 0.05,
            "jaccard_p": 0.0001,
            "n_shared": 70,
            "controls": [
                {
                    "of": of,
                    "rdm_spearman": {"value": 0.4, "ci_low": 0.3, "ci_high": 0.5},
                    "rdm_p": 0.01,
                }
                for of in ("dense", "untrained")
            ],
        },
        "steering": {
            "layer": 9,
            "site": "resid_post",
            "strength": 0.1,
            "unit": "residual-norm fraction",
            "settings": {"max_new_tokens": 40, "temperature": 0.8, "top_k": 0},
            "prompts": prompts,
            "vectors": [
                {
                    "emotion": emotion,
                    "n_latents": 8,
                    "fingerprint": "ef" * 32,
                    "promoted_tokens": [" plum", " kettle", "桌子", "ing", " ribbon"],
                }
                for emotion in CATEGORIES
            ],
            "rows": rows,
            "summary": [
                {
                    "language": language,
                    "method": method,
                    "n_texts": 52,
                    "perplexity_ratio": estimate(0.9, 4),
                    "distinct_2": estimate(0.5, 0.9),
                    "repetition": estimate(0.1, 0.4),
                    "emotion_word": estimate(0.1, 0.6),
                    "emotion_word_gain": None if method == "none" else estimate(0.0, 0.5),
                    "language_switch": estimate(0.1, 0.2),
                    "judged_intended": estimate(0.1, 0.4) if language == "en" else None,
                }
                for language in ("en", "zh")
                for method in ("sae", "random", "none")
            ],
            "judges": [
                {
                    "name": "TF-IDF + logistic regression",
                    "language": "en",
                    "trained_on": "a fixture",
                    "n_labels": 26,
                    "n_train": 100,
                    "n_test": 50,
                    "accuracy": 0.55,
                    "macro_f1": 0.5,
                }
            ],
        },
        "bars": [
            results.bar("A en", "Synthetic valence is predicted: r", "≥", 0.75, 0.8),
            results.bar("B zh", "Synthetic arousal is predicted: r", "≥", 0.5, 0.41),
            results.bar("S3", "Spliced in, the loss stays", "≥", 0.9, None),
        ],
        "notes": ["All of this is synthetic."],
    }
    return found
