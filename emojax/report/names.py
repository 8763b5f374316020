"""What languages, sets of features and directions are called, in the table and in the report."""

from emojax.report.results import FeatureSet, Language, Method

LANGUAGES: dict[Language, str] = {"en": "English", "zh": "Chinese"}
FEATURE_SETS: dict[FeatureSet, str] = {
    "space": "Emotion features",
    "intersection": "… shared by both languages",
    "transfer": "… shared, trained on the other language",
    "outside": "As many outside the space",
    "untrained": "As many, untrained dictionary",
    "all_latents": "All latents",
    "dense": "Residual stream (dense)",
    "length": "Length, tokens, frequency",
}
METHODS: dict[Method, str] = {
    "none": "Unsteered",
    "sae": "Emotion features",
    "diffmean": "DiffMean",
    "random": "Random direction",
}
