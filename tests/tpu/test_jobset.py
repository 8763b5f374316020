import yaml
from launches import BUCKET, TRAIN, launch


def test_dry_run_prints_the_manifest_that_kubectl_would_get():
    flags = ("--tpu=v5e", "--chips=16", "--slices=2", "--spot", "--grace=900", "--dry_run")
    done = launch("tpu.jobset", *flags, train=TRAIN + "8")
    assert done.returncode == 0, done.stderr
    jobset = yaml.safe_load(done.stdout)
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset["kind"] == "JobSet"
    assert jobset["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 50}
    (slices,) = jobset["spec"]["replicatedJobs"]
    assert slices["replicas"] == 2
    job = slices["template"]["spec"]
    assert (job["parallelism"], job["completions"]) == (4, 4)
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)

    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["hostNetwork"] is True
    assert pod["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert pod["terminationGracePeriodSeconds"] == 900
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert {item["key"] for item in pod["tolerations"]} == {
        "google.com/tpu",
        "cloud.google.com/gke-spot",
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shared"]["nfs"] == {"server": "10.0.0.2", "path": "/vol1"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory"}

    (container,) = pod["containers"]
    assert "command" not in container  # the image's tini stays the entry point
    assert container["args"][:3] == ["python", "-m", "experiments.train_sae"]
    assert "en=/shared/my text.txt,zh=/shared/zh.txt" in container["args"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert {"name": "JAX_COORDINATOR_PORT", "value": "8476"} in container["env"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/shared", "/dev/shm"}


def test_a_run_in_a_bucket_mounts_no_share():
    done = launch("tpu.jobset", "--dry_run", train=BUCKET + "4")
    (slices,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
    pod = slices["template"]["spec"]["template"]["spec"]
    assert [volume["name"] for volume in pod["volumes"]] == ["shm"]
    assert [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]] == ["/dev/shm"]


def test_a_bad_flag_is_one_sentence_and_nothing_is_sent():
    done = launch("tpu.jobset", "--chips=12", "--dry_run")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: A slice of 12 v5e chips does not exist; give one of 4, 8, 16, 32, 64, 128, 256.\n"
    )
