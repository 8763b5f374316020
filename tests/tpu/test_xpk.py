import shlex

from launches import BUCKET, TRAIN, launch

WHERE = ("--project=p", "--zone=us-west4-a", "--cluster=c", "--dry_run")


def test_dry_run_prints_the_workload():
    done = launch(
        "tpu.xpk", *WHERE, "--tpu=v6e", "--chips=32", "--max_restarts=3", train=TRAIN + "8"
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    words = shlex.split(line)
    assert words[:5] == ["xpk", "workload", "create", "--workload=sae", "--cluster=c"]
    assert {
        "--tpu-type=v6e-32",
        "--num-slices=1",
        "--docker-image=us-docker.pkg.dev/p/r/emojax:1",
        "--max-restarts=3",
        "--termination-grace-period-seconds=600",
        "--env=JAX_COORDINATOR_PORT=8476",
    } < set(words)
    mounted, _, trained = words[-1].removeprefix("--command=").rpartition(" && exec ")
    assert mounted.endswith("10.0.0.2:/vol1 /shared")
    assert shlex.split(trained)[:3] == ["python", "-m", "experiments.train_sae"]
    assert "en=/shared/my text.txt,zh=/shared/zh.txt" in shlex.split(trained)


def test_the_cluster_is_made_first_where_asked():
    flags = (*WHERE, "--create_cluster", "--spot", "--slices=2")
    done = launch("tpu.xpk", *flags, train=BUCKET + "8")
    cluster, workload = map(shlex.split, done.stdout.splitlines())
    assert cluster[:3] == ["xpk", "cluster", "create"]
    assert {"--tpu-type=v5litepod-16", "--num-slices=2", "--spot"} < set(cluster)
    assert workload[:3] == ["xpk", "workload", "create"]
    # Nothing is mounted where all that is written goes to a bucket.
    assert workload[-1].startswith("--command=exec python -m experiments.train_sae")


def test_a_missing_program_is_named():
    done = launch("tpu.xpk", *WHERE[:-1])
    assert done.returncode == 1
    assert "error: The program xpk is missing; install it" in done.stderr


def test_a_bad_quote_is_named():
    done = launch("tpu.xpk", *WHERE, train="--config 'c.py")
    assert done.returncode == 1
    assert done.stderr.startswith("error: The --train string cannot be read")
