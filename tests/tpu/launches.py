"""Runs a launcher as a user does, and the arguments that tests share."""

import subprocess
import sys

TRAIN = (
    "--config configs/gemma3_270m.py --corpus 'en=/shared/my text.txt,zh=/shared/zh.txt' "
    "--out /shared/runs/sae --set train.data_shards=4 --set train.latent_shards="
)
BUCKET = (
    "--config configs/gemma3_270m.py --corpus 'en=corpora/my text.txt,zh=hf:a/b' "
    "--out gs://b/sae --store gs://b/store --set train.data_shards=4 --set train.latent_shards="
)
COMMON = ("--name=sae", "--image=us-docker.pkg.dev/p/r/emojax:1")
NFS = "--nfs=10.0.0.2:/vol1"


def launch(module: str, *arguments: str, train: str = TRAIN + "4") -> subprocess.CompletedProcess:
    """`python -m module` with the common arguments before the test's own, and no cloud tools.

    Where what is trained names the share there is one.
    """
    share = [NFS] if "/shared/" in train else []
    command = [sys.executable, "-m", module, *COMMON, *share, f"--train={train}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
