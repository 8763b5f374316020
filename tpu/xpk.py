"""Runs a job with xpk, which makes the JobSet itself.

    python -m tpu.xpk --project P --zone us-west4-a --cluster C --name sae --tpu v5e --chips 16 \
      --image IMAGE --train "--config configs/gemma3_270m.py \
      --corpus en=corpora/en.txt.gz,zh=corpora/zh.txt.gz --out gs://B/sae --store gs://B/store \
      --set train.data_shards=4 --set train.latent_shards=4" --dry_run

prints the command. With --create_cluster the cluster is made first. xpk forwards SIGTERM itself.
"""

import shlex

from absl import flags

from emojax.errors import run
from tpu import job_flags
from tpu.job import SHARED, Job, execute

PROJECT = flags.DEFINE_string("project", None, "Google Cloud project.", required=True)
ZONE = flags.DEFINE_string("zone", None, "Zone with the TPUs.", required=True)
CLUSTER = flags.DEFINE_string("cluster", None, "Name of the cluster.", required=True)
CREATE = flags.DEFINE_bool("create_cluster", False, "Make the cluster first.")


def cluster_command(job: Job, project: str, zone: str, cluster: str) -> list[str]:
    """Makes a cluster with the job's slices."""
    capacity = ["--spot"] if job.spot else ["--on-demand"]
    if job.reservation:
        capacity = [f"--reservation={job.reservation}"]
    return [
        *("xpk", "cluster", "create", f"--cluster={cluster}"),
        f"--project={project}",
        f"--zone={zone}",
        f"--tpu-type={job.slices.accelerator_type}",
        f"--num-slices={job.slices.count}",
        *capacity,
    ]


def workload_command(job: Job, project: str, zone: str, cluster: str) -> list[str]:
    """Submits the job.

    A pod of xpk runs a shell, which mounts the share if there is one (its containers are
    privileged) and then becomes Python.
    """
    mount = [
        f"mkdir -p {SHARED}",
        f"mount -t nfs -o nolock {shlex.quote(job.nfs or '')} {SHARED}",
    ]
    # `exec`: what xpk's trap signals is then Python and not the shell around it.
    shell = [*(mount if job.nfs else []), f"exec {shlex.join(job.command)}"]
    return [
        *("xpk", "workload", "create", f"--workload={job.name}", f"--cluster={cluster}"),
        f"--project={project}",
        f"--zone={zone}",
        f"--tpu-type={job.slices.accelerator_type}",
        f"--num-slices={job.slices.count}",
        f"--docker-image={job.image}",
        f"--max-restarts={job.max_restarts}",
        f"--termination-grace-period-seconds={job.grace}",
        *(f"--env={name}={value}" for name, value in job.environment.items()),
        f"--command={' && '.join(shell)}",
    ]


def main(_):
    """Prints or runs the commands."""
    job = job_flags.from_flags()
    makers = [cluster_command] if CREATE.value else []
    for maker in (*makers, workload_command):
        command = maker(job, PROJECT.value, ZONE.value, CLUSTER.value)
        if job_flags.DRY_RUN.value:
            print(shlex.join(command))
        else:
            print(execute(command), end="")


if __name__ == "__main__":
    run(main)
