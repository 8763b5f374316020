"""Qwen2.5-7B, layer 18 of 28, English and Chinese.

The layer lies at two thirds of the depth, where emotion concepts are read best (Sofroniew et al.
2026, arXiv:2604.07729); the width is about nine times the model's, as with Llama Scope.

Download Qwen/Qwen2.5-7B from Hugging Face into `models/Qwen2.5-7B`. Its weights need
29 GiB in float32. On a laptop with that much memory, a small dictionary of little text:

    python -m experiments.train_sae --config configs/qwen25_7b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz \
      --set sae.n_latents=4096 --set data.tokens=200000 --set train.batch_tokens=512

One GPU, the dictionary as configured and the weights in bfloat16, which need half of that:

    python -m experiments.train_sae --config configs/qwen25_7b.py \
      --corpus en=en.txt.gz,zh=zh.txt.gz --set activations.model_dtype=bfloat16

A TPU pod, the same command on every host; 16 v5e devices here, each with an eighth of the latents
and half of the tokens. Each host captures from a copy of its own, in bfloat16 and split over its
four devices; run and result go to a bucket, and weights and corpora lie on a share that all hosts
see as `/shared` (`tpu/README.md`). It was not compiled for this very mesh, which
`tpu.compile_check` does:

    python -m experiments.train_sae --config configs/qwen25_7b.py \
      --corpus en=/shared/en.txt.gz,zh=/shared/zh.txt.gz --distributed \
      --out gs://BUCKET/qwen25_7b --store gs://BUCKET/qwen25_7b/heldout \
      --set sae.model=/shared/models/Qwen2.5-7B \
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
    study=Study(model="models/Qwen2.5-7B", sae="runs/train_sae/qwen25_7b/artefact"),
    sae=SaeConfig(
        d_model=3584,
        n_latents=32768,
        k=64,
        model="models/Qwen2.5-7B",
        layer=18,
        architecture="batch_topk",
    ),
    data=DataConfig(tokens=4_000_000, store_gib=64.0),
    train=TrainConfig(epochs=4, batch_tokens=4096),
)
