"""Llama-3-8B-Instruct, layer 25 of 32, English and Chinese.

The family of the other model of arXiv:2506.13978. The layer is that of the one public
dictionary for it, llama-3-8b-it-res (`blocks.25.hook_resid_post`).

Download meta-llama/Meta-Llama-3-8B-Instruct from Hugging Face into
`models/Meta-Llama-3-8B-Instruct`. Its weights need 30 GiB in float32. On a laptop with that much
memory, a small dictionary of little text:

    python -m experiments.train_sae --config configs/llama3_8b_it.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz \
      --set sae.n_latents=4096 --set data.tokens=200000 --set train.batch_tokens=512

One GPU, the dictionary as configured and the weights in bfloat16, which need half of that:

    python -m experiments.train_sae --config configs/llama3_8b_it.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz --set activations.model_dtype=bfloat16

A TPU pod, the same command on every host; 16 v5e devices here, each with an eighth of the latents
and half of the tokens. Each host captures from a copy of its own, in bfloat16 and split over its
four devices; run and result go to a bucket, and weights and corpora lie on a share that all hosts
see as `/shared` (`tpu/README.md`). It was not compiled for this very mesh, which
`tpu.compile_check` does:

    python -m experiments.train_sae --config configs/llama3_8b_it.py \
      --corpus en=/shared/en.txt.gz,zh=/shared/zh.txt.gz --distributed \
      --out gs://BUCKET/llama3_8b_it --store gs://BUCKET/llama3_8b_it/heldout \
      --set sae.model=/shared/models/Meta-Llama-3-8B-Instruct \
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
    study=Study(
        model="models/Meta-Llama-3-8B-Instruct", sae="runs/train_sae/llama3_8b_it/artefact"
    ),
    sae=SaeConfig(
        d_model=4096,
        n_latents=65536,
        k=64,
        model="models/Meta-Llama-3-8B-Instruct",
        layer=25,
        architecture="batch_topk",
    ),
    data=DataConfig(tokens=4_000_000, store_gib=64.0),
    train=TrainConfig(epochs=4, batch_tokens=4096),
)
