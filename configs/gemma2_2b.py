"""Gemma-2-2B, layer 12 of 26, English and Chinese.

The middle layer and the smaller width of Gemma Scope for this model (Lieberum et al. 2024,
arXiv:2408.05147: every layer, 16k and 65k latents on the residual stream).

Download google/gemma-2-2b from Hugging Face into `models/gemma-2-2b`. Its weights need
10 GiB in float32. On a laptop with that much memory, a small dictionary of little text:

    python -m experiments.train_sae --config configs/gemma2_2b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz \
      --set sae.n_latents=4096 --set data.tokens=200000 --set train.batch_tokens=512

One GPU with room for them and for the dictionary, as configured:

    python -m experiments.train_sae --config configs/gemma2_2b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz

A TPU pod (each host reads the model onto its first device): the same command on every host, with
the corpora and the folders on a disk that all of them see; 16 devices here, each with an eighth of
the latents and half of the tokens (`tpu/README.md`):

    python -m experiments.train_sae --config configs/gemma2_2b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz --distributed \
      --out /shared/gemma2_2b --store /shared/gemma2_2b/activations \
      --set train.data_shards=2 --set train.latent_shards=8
"""

from emojax.config import Config
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import DataConfig
from emojax.sae.train_config import TrainConfig
from emojax.study.settings import Study

CONFIG = Config(
    study=Study(model="models/gemma-2-2b", sae="runs/train_sae/gemma2_2b/artefact"),
    sae=SaeConfig(
        d_model=2304,
        n_latents=16384,
        k=64,
        model="models/gemma-2-2b",
        layer=12,
        architecture="batch_topk",
    ),
    data=DataConfig(tokens=4_000_000, store_gib=64.0),
    train=TrainConfig(epochs=4, batch_tokens=4096),
)
