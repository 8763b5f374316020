"""Runs a job on TPU VMs of its own: asks for them, waits, and starts a container on every VM.

    python -m tpu.queued_resources --project P --zone us-west4-a --name sae --tpu v5e --chips 16 \
      --image IMAGE --train "--config configs/gemma3_270m.py \
      --corpus en=corpora/en.txt.gz,zh=corpora/zh.txt.gz --out gs://B/sae --store gs://B/store \
      --set train.data_shards=4 --set train.latent_shards=4" --dry_run

prints the commands, in order. Without --dry_run it runs them. The container runs on without this
program: its output is in `docker logs train` on each VM.
"""

import dataclasses
import shlex
import time
from collections.abc import Iterator

from absl import flags

from emojax.errors import UserError, run
from tpu import job_flags
from tpu.job import SHARED, Job, execute

PROJECT = flags.DEFINE_string("project", None, "Google Cloud project.", required=True)
ZONE = flags.DEFINE_string("zone", None, "Zone with the TPUs.", required=True)
VALID_FOR = flags.DEFINE_string("valid_for", "24h", "How long the request may wait, such as 6h.")

POLL_SECONDS = 30


@dataclasses.dataclass(frozen=True)
class Step:
    """One command; with `until`, repeated until it prints that."""

    command: list[str]
    until: str | None = None


def nodes(job: Job) -> list[str]:
    """Names of the slices: a node is a slice, and has one VM or more."""
    count = job.slices.count
    return [job.name] if count == 1 else [f"{job.name}-{i}" for i in range(count)]


def steps(job: Job, project: str, zone: str, valid_for: str) -> Iterator[Step]:
    """Everything that is sent, in order.

    Raises:
      UserError: this TPU is not offered as VMs of one's own.
    """
    slices = job.slices
    runtime = slices.chip.runtime
    if runtime is None:
        raise UserError(
            f"The TPU {slices.kind} is only to be had in GKE; use tpu.jobset or tpu.xpk."
        )
    where = [f"--project={project}", f"--zone={zone}"]
    request = ["gcloud", "compute", "tpus", "queued-resources"]
    capacity = ["--spot"] if job.spot else []
    if job.reservation:
        # The stable command takes any reservation of the project; only alpha takes a name.
        request.insert(1, "alpha")
        capacity = ["--reserved", f"--reservation={job.reservation}"]
    several = [f"--node-count={slices.count}", f"--node-prefix={job.name}"]
    yield Step(
        [
            *(*request, "create", job.name, *where),
            *(several if slices.count > 1 else [f"--node-id={job.name}"]),
            f"--accelerator-type={slices.accelerator_type}",
            f"--runtime-version={runtime}",
            f"--valid-until-duration={valid_for}",
            *capacity,
        ]
    )
    yield Step([*request, "describe", job.name, *where, "--format=value(state.state)"], "ACTIVE")

    def ssh(node: str, worker: str, command: str) -> Step:
        tool = ["gcloud", "compute", "tpus", "tpu-vm", "ssh", node, *where]
        return Step([*tool, f"--worker={worker}", f"--command={command}"])

    # The first connection makes and spreads the SSH key; on all workers at once that is a race.
    yield from (ssh(node, "0", "true") for node in nodes(job))
    yield from (ssh(node, "all", prepare(job)) for node in nodes(job))
    # Detached, and slice after slice: nobody trains before all are there (start_timeout).
    yield from (ssh(node, "all", start(job)) for node in nodes(job))


def prepare(job: Job) -> str:
    """What every VM does once: mount the share if there is one, fetch the image."""
    share = [
        "sudo apt-get update -qq",
        "sudo apt-get install -y -qq nfs-common",
        f"sudo mkdir -p {SHARED}",
        f"(mountpoint -q {SHARED} || sudo mount -t nfs {shlex.quote(job.nfs or '')} {SHARED})",
    ]
    image = [
        f"sudo gcloud auth configure-docker --quiet {shlex.quote(job.image.split('/')[0])}",
        f"sudo docker pull {shlex.quote(job.image)}",
    ]
    return " && ".join([*(share if job.nfs else []), *image])


def start(job: Job) -> str:
    """What every VM runs: Python 3.12 is in the image, the VM's own is older."""
    environment = [word for item in job.environment.items() for word in ("-e", "=".join(item))]
    restarts = f"on-failure:{job.max_restarts}" if job.max_restarts else "no"
    container = [
        *("sudo", "docker", "run", "--detach", "--name=train"),
        *("--privileged", "--network=host", "--shm-size=16g"),
        *([f"--volume={SHARED}:{SHARED}"] if job.nfs else []),
        f"--restart={restarts}",
        f"--stop-timeout={job.grace}",
        *environment,
        job.image,
        *job.command,
    ]
    return shlex.join(container)


def main(_):
    """Prints or runs the steps."""
    job = job_flags.from_flags()
    for step in list(steps(job, PROJECT.value, ZONE.value, VALID_FOR.value)):
        if job_flags.DRY_RUN.value:
            if step.until:
                print(f"# every {POLL_SECONDS} s, until it prints {step.until}:")
            print(shlex.join(step.command))
            continue
        while True:
            printed = execute(step.command).strip()
            if step.until is None or printed == step.until:
                break
            if printed in ("FAILED", "SUSPENDED", "SUSPENDING", "DELETING"):
                raise UserError(
                    f"The queued resource {job.name} is {printed}; delete it and ask again."
                )
            time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    run(main)
