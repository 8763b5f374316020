"""Gemma-3-270m, layer 9 of 18, English and Chinese.

The middle layer's residual stream, as in Gemma Scope (Lieberum et al. 2024, arXiv:2408.05147), and
a width that a laptop can train and a study of 26 emotions can read.

The shipped dictionary, from this folder's top, with the corpora that its model card names, on a
laptop (two CPU cores: about an hour, a little more of it training than capture; Ctrl-C at any time,
the same command goes on):

    python -m experiments.train_sae --config configs/gemma3_270m.py \
      --corpus en=en_novels_pd_30mb.txt.gz,en=goemo_train.tsv,zh=zh_smile_cc0_40mb.txt.gz \
      --artefact emojax/data/sae/gemma3_270m

One GPU: a wider one, in larger batches:

    python -m experiments.train_sae --config configs/gemma3_270m.py \
      --corpus en=en_novels_pd_30mb.txt.gz,en=goemo_train.tsv,zh=zh_smile_cc0_40mb.txt.gz \
      --out runs/gemma3_270m_16k --set sae.n_latents=16384 --set train.batch_tokens=4096 \
      --set train.learning_rate=none

A TPU pod, the same command on every host; 16 v5e devices here, each with an eighth of the latents
and half of the tokens. Each captures from a copy of its own, in bfloat16; run and result go to a
bucket, and the corpora lie where all hosts see them (`tpu/README.md`):

    python -m experiments.train_sae --config configs/gemma3_270m.py \
      --corpus en=en_novels_pd_30mb.txt.gz,en=goemo_train.tsv,zh=zh_smile_cc0_40mb.txt.gz \
      --distributed --out gs://BUCKET/gemma3_270m --store gs://BUCKET/gemma3_270m/heldout \
      --set activations.streamed=true --set activations.model_dtype=bfloat16 \
      --set activations.model_shards=1 --set data.tokens=6000000 --set train.epochs=1 \
      --set sae.n_latents=16384 --set train.batch_tokens=4096 --set train.learning_rate=none \
      --set train.data_shards=2 --set train.latent_shards=8
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
    data=DataConfig(tokens=2_000_000),
    train=TrainConfig(epochs=3, batch_tokens=512, learning_rate=1e-3),
)
