"""Gemma-2-2B, layer 12 of 26, English and Chinese.

The middle layer and the smaller width of Gemma Scope for this model (Lieberum et al. 2024,
arXiv:2408.05147: every layer, 16k and 65k latents on the residual stream).

Download google/gemma-2-2b from Hugging Face into `models/gemma-2-2b`. Its weights need
10 GiB in float32. On a laptop with that much memory, a small dictionary of little text:

    python -m experiments.train_sae --config configs/gemma2_2b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz \
      --set sae.n_latents=4096 --set data.tokens=200000 --set train.batch_tokens=512

One GPU, the dictionary as configured and the weights in bfloat16, which need half of that:

    python -m experiments.train_sae --config configs/gemma2_2b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz --set activations.model_dtype=bfloat16

A TPU pod, the same command on every host; 16 v5e devices here, each with an eighth of the latents
and half of the tokens. Each host captures from a copy of its own, in bfloat16 and split over its
four devices; run and result go to a bucket, and weights and corpora lie on a share that all hosts
see as `/shared` (`tpu/README.md`):

    python -m experiments.train_sae --config configs/gemma2_2b.py \
      --corpus en=/shared/en.txt.gz,zh=/shared/zh.txt.gz --distributed \
      --out gs://BUCKET/gemma2_2b --store gs://BUCKET/gemma2_2b/heldout \
      --set sae.model=/shared/models/gemma-2-2b \
      --set activations.streamed=true --set activations.model_dtype=bfloat16 \
      --set activations.model_shards=4 --set data.tokens=16000000 --set train.epochs=1 \
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
