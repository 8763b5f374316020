"""Gemma-3-270m, layer 9 of 18, English and Chinese.

The shipped dictionary, from this folder's top, with the corpora that its model card names
(two CPU cores: about two hours, most of it capture; Ctrl-C at any time, the same command goes on):

    python -m experiments.train_sae --config configs/gemma3_270m.py \
      --corpus en=en_novels_pd_30mb.txt.gz,en=goemo_train.tsv,zh=zh_smile_cc0_40mb.txt.gz \
      --artefact emojax/data/sae/gemma3_270m
"""

from emojax.config import Config
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import DataConfig
from emojax.sae.train_config import TrainConfig
from emojax.study.settings import Study

CONFIG = Config(
    study=Study(model="gemma-3-270m", sae="gemma3_270m"),
    sae=SaeConfig(
        d_model=640, n_latents=4096, k=64, model="gemma-3-270m", layer=9, site="resid_post"
    ),
    data=DataConfig(tokens=1_000_000),
    train=TrainConfig(epochs=6, batch_tokens=512, learning_rate=1e-3),
)
