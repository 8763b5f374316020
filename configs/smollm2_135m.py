"""SmolLM2-135M-Instruct, layer 15 of 30, English only.

The middle layer's residual stream, as in Gemma Scope (Lieberum et al. 2024, arXiv:2408.05147), and
a width that a laptop can train.

No dictionary is shipped for it. Train one on a laptop, from this folder's top, then run the main
job with it:

    python -m experiments.train_sae --config configs/smollm2_135m.py \
      --corpus en=en_novels_pd_30mb.txt.gz,en=goemo_train.tsv --artefact runs/smollm2_135m/artefact
    python -m experiments.quickstart --config configs/smollm2_135m.py --output runs/smollm2_135m

One GPU: a wider one, in larger batches:

    python -m experiments.train_sae --config configs/smollm2_135m.py \
      --corpus en=en_novels_pd_30mb.txt.gz,en=goemo_train.tsv --out runs/smollm2_135m_16k \
      --set sae.n_latents=16384 --set train.batch_tokens=4096

A TPU pod, the same command on every host; 16 v5e devices here, each with an eighth of the latents
and half of the tokens. Each captures from a copy of its own, in bfloat16; run and result go to a
bucket, and the corpora lie where all hosts see them (`tpu/README.md`):

    python -m experiments.train_sae --config configs/smollm2_135m.py \
      --corpus en=en_novels_pd_30mb.txt.gz,en=goemo_train.tsv \
      --distributed --out gs://BUCKET/smollm2_135m --store gs://BUCKET/smollm2_135m/heldout \
      --set activations.streamed=true --set activations.model_dtype=bfloat16 \
      --set activations.model_shards=1 --set data.tokens=6000000 --set train.epochs=1 \
      --set sae.n_latents=16384 --set train.batch_tokens=4096 \
      --set train.data_shards=2 --set train.latent_shards=8
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
