import shlex

from launches import BUCKET, TRAIN, launch

WHERE = ("--project=p", "--zone=us-west4-a", "--dry_run")


def printed(done):
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]


def test_dry_run_prints_every_command_in_order():
    done = launch("tpu.queued_resources", *WHERE, "--tpu=v5p", "--chips=16", "--spot")
    create, wait, first, prepare, start = printed(done)
    assert create == [
        *("gcloud", "compute", "tpus", "queued-resources", "create", "sae"),
        *("--project=p", "--zone=us-west4-a", "--node-id=sae", "--accelerator-type=v5p-32"),
        *("--runtime-version=v2-alpha-tpuv5", "--valid-until-duration=24h", "--spot"),
    ]
    assert wait[4:6] == ["describe", "sae"]
    assert "until it prints ACTIVE" in done.stdout
    ssh = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "sae", "--project=p", "--zone=us-west4-a"]
    # One worker first, for the key; then all of them.
    assert first == [*ssh, "--worker=0", "--command=true"]
    assert prepare[:-1] == start[:-1] == [*ssh, "--worker=all"]
    assert "mount -t nfs 10.0.0.2:/vol1 /shared" in prepare[-1]

    container = shlex.split(start[-1].removeprefix("--command="))
    assert container[:4] == ["sudo", "docker", "run", "--detach"]
    for word in (
        "--privileged",
        "--network=host",
        "--restart=on-failure:50",
        "--stop-timeout=600",
        "JAX_COORDINATOR_PORT=8476",
        "en=/shared/my text.txt,zh=/shared/zh.txt",
        "--distributed",
    ):
        assert word in container


def test_every_slice_is_prepared_before_any_starts():
    commands = printed(launch("tpu.queued_resources", *WHERE, "--slices=2", train=TRAIN + "8"))
    assert {"--node-count=2", "--node-prefix=sae"} < set(commands[0])
    assert [command[5] for command in commands[2:]] == ["sae-0", "sae-1"] * 3
    assert ["docker run" in command[-1] for command in commands[2:]] == [False] * 4 + [True] * 2


def test_a_reservation_goes_by_name_and_a_run_in_a_bucket_mounts_nothing():
    done = launch("tpu.queued_resources", *WHERE, "--reservation=mine", train=BUCKET + "4")
    create, *_, prepare, start = printed(done)
    assert "mount" not in prepare[-1]
    assert "--volume" not in start[-1]
    assert "--store gs://b/store" in start[-1]
    assert create[:3] == ["gcloud", "alpha", "compute"]
    assert create[-2:] == ["--reserved", "--reservation=mine"]


def test_a_tpu_that_is_only_in_gke_is_refused():
    done = launch("tpu.queued_resources", *WHERE, "--tpu=tpu7x", train=TRAIN + "8")
    assert done.returncode == 1
    assert done.stderr.startswith("error: The TPU tpu7x is only to be had in GKE")
    assert done.stdout == ""
