"""Llama-3.1-8B, layer 15 of 32, English and Chinese.

The smaller width of Llama Scope (He et al. 2024, arXiv:2410.20526: every layer, 8 and 32 times the
model's width), at the middle layer.

Download meta-llama/Llama-3.1-8B from Hugging Face into `models/Llama-3.1-8B`. Its weights need
30 GiB in float32. On a laptop with that much memory, a small dictionary of little text:

    python -m experiments.train_sae --config configs/llama31_8b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz \
      --set sae.n_latents=4096 --set data.tokens=200000 --set train.batch_tokens=512

One GPU with room for them and for the dictionary, as configured:

    python -m experiments.train_sae --config configs/llama31_8b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz

A TPU pod (v5p or tpu7x, since each host reads the model onto its first device): the same command on
every host, with the corpora and the folders on a disk that all of them see; 16 devices here, each
with an eighth of the latents and half of the tokens (`tpu/README.md`):

    python -m experiments.train_sae --config configs/llama31_8b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz --distributed \
      --out /shared/llama31_8b --store /shared/llama31_8b/activations \
      --set train.data_shards=2 --set train.latent_shards=8
"""

from emojax.config import Config
from emojax.sae.coder import SaeConfig
from emojax.sae.corpus import DataConfig
from emojax.sae.train_config import TrainConfig
from emojax.study.settings import Study

CONFIG = Config(
    study=Study(model="models/Llama-3.1-8B", sae="runs/train_sae/llama31_8b/artefact"),
    sae=SaeConfig(
        d_model=4096,
        n_latents=32768,
        k=64,
        model="models/Llama-3.1-8B",
        layer=15,
        architecture="batch_topk",
    ),
    data=DataConfig(tokens=4_000_000, store_gib=64.0),
    train=TrainConfig(epochs=4, batch_tokens=4096),
)
