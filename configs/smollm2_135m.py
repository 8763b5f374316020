"""SmolLM2-135M-Instruct, layer 15 of 30, English only.

No dictionary is shipped for it. Train one, from this folder's top, then run the main job with it:

    python -m experiments.train_sae --config configs/smollm2_135m.py \
      --corpus en=en_novels_pd_30mb.txt.gz,en=goemo_train.tsv --artefact runs/smollm2_135m/artefact
    python -m experiments.quickstart --config configs/smollm2_135m.py --output runs/smollm2_135m
"""

from emojax.config import Config
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import DataConfig
from emojax.sae.train_config import TrainConfig
from emojax.study.settings import Study

CONFIG = Config(
    study=Study(model="smollm2-135m-instruct", sae="runs/smollm2_135m/artefact", languages=("en",)),
    sae=SaeConfig(d_model=576, n_latents=4096, k=64, model="smollm2-135m-instruct", layer=15),
    data=DataConfig(tokens=1_000_000, languages=("en",), weights=(1.0,)),
    train=TrainConfig(epochs=6),
)
