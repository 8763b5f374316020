import dataclasses

import pytest
from absl import flags

import emojax.distributed  # noqa: F401  # defines the flags that every process is started with
from emojax.errors import UserError
from tpu.chips import CHIPS, Slices
from tpu.job import Job, check_training, option

JOB = Job(
    name="sae",
    slices=Slices("v5e", 16, 2),
    image="us-docker.pkg.dev/p/r/emojax:1",
    train=("--config=c.py", "--corpus", "en=/shared/en.txt", "--out", "/shared/runs/sae"),
    nfs="10.0.0.2:/vol1",
)
BUCKET = ("--config=c.py", "--corpus=en=corpora/en.txt", "--out=gs://b/run", "--store=gs://b/store")


@pytest.mark.parametrize(
    ("slices", "kind", "topology", "per_host", "hosts"),
    [
        (Slices("v5e", 8), "v5litepod-8", "2x4", 8, 1),
        (Slices("v5e", 16), "v5litepod-16", "4x4", 4, 4),
        (Slices("v6e", 256), "v6e-256", "16x16", 4, 64),
        (Slices("v5p", 4), "v5p-8", "2x2x1", 4, 1),
        (Slices("v5p", 128), "v5p-256", "4x4x8", 4, 32),
        (Slices("tpu7x", 64), "tpu7x-128", "4x4x4", 4, 16),
    ],
)
def test_names_and_hosts_are_those_of_the_documentation(slices, kind, topology, per_host, hosts):
    assert slices.accelerator_type == kind
    assert slices.topology == topology
    assert (slices.chips_per_host, slices.hosts) == (per_host, hosts)


def test_every_topology_has_as_many_chips_as_it_says():
    for chip in CHIPS.values():
        for chips, topology in chip.topologies.items():
            product = 1
            for side in topology.split("x"):
                product *= int(side)
            assert product == chips


def test_processes_count_all_slices():
    assert JOB.slices.processes == 8


def test_the_command_is_the_users_and_how_to_start():
    assert JOB.command[:4] == ["python", "-m", "experiments.train_sae", "--config=c.py"]
    assert JOB.command[-3:] == ["--distributed", "--start_timeout=1800", "--heartbeat_timeout=100"]
    for word in JOB.command[-3:]:
        assert word.lstrip("-").partition("=")[0] in flags.FLAGS


def test_the_coordinator_listens_where_the_firewall_is_open():
    assert JOB.environment["JAX_COORDINATOR_PORT"] == "8476"


def test_a_job_that_writes_to_a_bucket_needs_no_share_and_one_with_a_share_no_store():
    alone = dataclasses.replace(JOB, train=BUCKET, nfs=None)
    assert alone.share is None
    assert "EMOJAX_CACHE" not in alone.environment
    shared = dataclasses.replace(JOB, train=BUCKET[:-1])
    assert shared.environment["EMOJAX_CACHE"] == "/shared/cache"


def test_options_are_found_in_both_spellings():
    assert option(("--out", "/a"), "out") == option(("--out=/a",), "out") == "/a"
    assert option(("--outer=/a", "--out"), "out") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "Sae"}, "lower-case"),
        ({"name": "a" * 41}, "40"),
        ({"coordinator_port": 80}, "1024"),
        ({"start_timeout": 0}, "start_timeout"),
        ({"heartbeat_timeout": -1}, "heartbeat_timeout"),
        ({"grace": 0}, "grace"),
        ({"max_restarts": -1}, "max_restarts"),
        ({"spot": True, "reservation": "r"}, "drop one"),
        ({"nfs": "10.0.0.2"}, "server:/share"),
        ({"nfs": None}, "no share; give --nfs"),
        ({"train": ("--config=c.py", "--out=/shared/r")}, "--corpus"),
        ({"train": (*JOB.train[:3], "--out=/tmp/r")}, "ends with its host"),
        ({"train": JOB.train[:3]}, "The default of --out ends with its host"),
        ({"train": (*JOB.train, "--store=/tmp/s")}, "--store '/tmp/s' ends with its host"),
        ({"train": (*JOB.train, "--artefact=a")}, "--artefact 'a' ends with its host"),
        ({"train": BUCKET[:-1], "nfs": None}, "The default of --store ends with its host"),
    ],
)
def test_a_job_that_cannot_work_is_refused_in_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as refused:
        dataclasses.replace(JOB, **changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("slices", "message"),
    [(("v9", 8, 1), "v5e, v5p"), (("v5e", 12, 1), "4, 8, 16"), (("v5e", 8, 0), "at least 1")],
)
def test_slices_that_do_not_exist_are_refused(slices, message):
    with pytest.raises(UserError, match=message):
        Slices(*slices)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (("--config=configs/none.py",), r"none\.py is missing"),
        (("--set=train.nothing=1",), "names no field 'nothing'"),
        ((), "1 data by 1 latent shards does not divide the 32 devices"),
        (("--set=train.latent_shards=32", "--set", "sae.n_latents=100"), "100 latents"),
        (("--set=train.data_shards=64",), "needs 64 devices and there are 32"),
        (
            ("--set=train.latent_shards=32", "--set=activations.model_shards=8"),
            "over 8 of the 4 devices of a v5e host",
        ),
        (
            ("--set=train.latent_shards=32", "--sweep", "sae.n_latents=64,100"),
            "100 latents",
        ),
        (
            (
                "--set=train.latent_shards=32",
                "--set=activations.streamed=true",
                "--set=activations.buffer_tokens=1000",
            ),
            "does not hold two batches",
        ),
    ],
)
def test_what_the_pod_would_refuse_is_refused_before_anything_is_sent(train, message):
    common = ("--config=configs/gemma3_270m.py", "--corpus=en=a.txt", "--out=/shared/runs/sae")
    with pytest.raises(UserError, match=message):
        check_training(dataclasses.replace(JOB, train=(*train, *common)))


def test_a_mesh_for_all_slices_and_a_config_that_lies_on_the_share_pass():
    mesh = ("--set", "train.data_shards=2", "--set=train.latent_shards=16")
    common = ("--corpus=en=a.txt", "--out=/shared/runs/sae")
    for first in (("--config=configs/gemma3_270m.py", *mesh), ("--config=/shared/mine.py",)):
        check_training(dataclasses.replace(JOB, train=(*first, *common)))
