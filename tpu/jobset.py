"""Runs a job on GKE as a JobSet: one Job per slice, one pod per VM.

    python -m tpu.jobset --name sae --tpu v5e --chips 16 --slices 2 --image IMAGE \
      --train "--config configs/gemma3_270m.py \
      --corpus en=corpora/en.txt.gz,zh=corpora/zh.txt.gz --out gs://B/sae --store gs://B/store \
      --set train.data_shards=4 --set train.latent_shards=8" --dry_run

prints the manifest; without --dry_run it goes to `kubectl apply`. The cluster needs the JobSet
controller and a TPU node pool per slice (tpu/README.md).
"""

from typing import Any

import yaml
from absl import flags

from emojax.errors import run
from tpu import job_flags
from tpu.job import SHARED, Job, execute

NAMESPACE = flags.DEFINE_string("namespace", "default", "Kubernetes namespace.")
SERVICE_ACCOUNT = flags.DEFINE_string("service_account", "default", "Kubernetes service account.")


def manifest(job: Job, namespace: str, service_account: str) -> dict[str, Any]:
    """The JobSet, as what YAML will say."""
    slices = job.slices
    selector = {
        "cloud.google.com/gke-tpu-accelerator": slices.chip.gke,
        "cloud.google.com/gke-tpu-topology": slices.topology,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if job.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        tolerations.append(
            {
                "key": "cloud.google.com/gke-spot",
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        )
    if job.reservation:
        selector["cloud.google.com/reservation-name"] = job.reservation
    chips = {"google.com/tpu": slices.chips_per_host}
    # The 64 MiB of /dev/shm that a container has are too few for libtpu.
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    if job.share:
        server, path = job.share
        volumes.append({"name": "shared", "nfs": {"server": server, "path": path}})
        mounts.append({"name": "shared", "mountPath": SHARED})
    container = {
        "name": "train",
        "image": job.image,
        # Arguments only: the image's entry point, tini, hands signals on to Python.
        "args": job.command,
        "env": [{"name": name, "value": value} for name, value in job.environment.items()],
        "ports": [{"containerPort": job.coordinator_port}],
        "resources": {"requests": chips, "limits": dict(chips)},
        "volumeMounts": mounts,
    }
    pod = {
        "serviceAccountName": service_account,
        "restartPolicy": "Never",
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "terminationGracePeriodSeconds": job.grace,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": volumes,
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": job.name,
            "namespace": namespace,
            # A slice must lie in one node pool, and share it with no other slice.
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            # A host that fails takes its collectives with it, so that all slices start again.
            "failurePolicy": {"maxRestarts": job.max_restarts},
            "replicatedJobs": [
                {
                    "name": "slice",
                    "replicas": slices.count,
                    "template": {
                        "spec": {
                            "parallelism": slices.hosts,
                            "completions": slices.hosts,
                            "completionMode": "Indexed",
                            "backoffLimit": 0,
                            "template": {"spec": pod},
                        }
                    },
                }
            ],
        },
    }


def main(_):
    """Prints or applies the manifest."""
    job = job_flags.from_flags()
    text = yaml.safe_dump(
        manifest(job, NAMESPACE.value, SERVICE_ACCOUNT.value), sort_keys=False, width=100
    )
    if job_flags.DRY_RUN.value:
        print(text, end="")
    else:
        print(execute(["kubectl", "apply", "-f", "-"], stdin=text), end="")


if __name__ == "__main__":
    run(main)
