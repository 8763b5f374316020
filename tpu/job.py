"""What the three launchers share: a job as a value, and the command that each process runs."""

import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from emojax import config as configs
from emojax.errors import UserError
from emojax.sae import pipeline, state
from tpu.chips import Slices

# Where the network file system is mounted on every host.
SHARED = "/shared"
_CACHE = f"{SHARED}/cache"


@dataclasses.dataclass(frozen=True)
class Job:
    """A training job on a pod.

    Attributes:
      name: what the cloud calls it: lower-case letters, digits and hyphens, at most 40.
      slices: what it runs on.
      image: the container image.
      train: arguments of `experiments.train_sae`.
      nfs: server:/share of a network file system that every host sees at `SHARED`; not needed
        where everything that is written goes to a bucket (`gs://`).
      coordinator_port: of JAX's coordinator.
      start_timeout: seconds that a process waits for the others.
      heartbeat_timeout: seconds of silence after which a process is given up.
      grace: seconds between SIGTERM and SIGKILL, in which a checkpoint must be written.
      max_restarts: how often a job that failed starts again.
      spot: use capacity that can be taken away.
      reservation: use reserved capacity of this name.
    """

    name: str
    slices: Slices
    image: str
    train: tuple[str, ...]
    nfs: str | None = None
    coordinator_port: int = 8476
    start_timeout: int = 1800
    heartbeat_timeout: int = 100
    grace: int = 600
    max_restarts: int = 50
    spot: bool = False
    reservation: str | None = None

    def __post_init__(self):
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", self.name):
            raise UserError(
                f"The job's name {self.name!r} is not allowed; use at most 40 lower-case letters, "
                "digits and hyphens, a letter first."
            )
        if not 1024 <= self.coordinator_port < 65536:
            raise UserError(
                f"The coordinator's port is {self.coordinator_port}; give one from 1024 to 65535."
            )
        for field in ("start_timeout", "heartbeat_timeout", "grace"):
            if getattr(self, field) < 1:
                raise UserError(f"The job's {field} is {getattr(self, field)} s; give at least 1.")
        if self.max_restarts < 0:
            raise UserError(f"The job's max_restarts is {self.max_restarts}; give 0 or more.")
        if self.spot and self.reservation:
            raise UserError("A job is either on spot or on reserved capacity; drop one of the two.")
        if self.nfs is not None and not re.fullmatch(r"[^:/\s]+:/\S*", self.nfs):
            raise UserError(f"The share {self.nfs!r} is no server:/share; give 10.0.0.2:/share.")
        if option(self.train, "config") is None or option(self.train, "corpus") is None:
            raise UserError("The training command lacks --config or --corpus; add them to --train.")
        self._check_places()

    def _check_places(self) -> None:
        """Refuses what would lie on one host's own disk, unseen by the others and lost with it."""
        places = {name: option(self.train, name) or "" for name in ("out", "store", "artefact")}
        if self.nfs is None and any(f"{SHARED}/" in word for word in self.train):
            raise UserError(
                f"The training command names {SHARED}, and there is no share; give --nfs."
            )
        bucket = f"gs://BUCKET/{self.name}"
        for name, place in places.items():
            seen = place.startswith(("gs://", f"{SHARED}/"))
            # The store's default is in the cache, which lies on the share if there is one; the
            # artefact's is in --out.
            default = not place and (name == "artefact" or (name == "store" and self.nfs))
            if not (seen or default):
                what = f"folder --{name} {place!r}" if place else f"default of --{name}"
                raise UserError(
                    f"The {what} ends with its host and is not seen by the others; give --{name} "
                    f"{bucket}, or --nfs and a folder of {SHARED}, in --train."
                )

    @property
    def share(self) -> tuple[str, str] | None:
        """Server and path of the network file system, if there is one."""
        if self.nfs is None:
            return None
        server, _, path = self.nfs.partition(":")
        return server, path

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every process."""
        # JAX's own choice, 8482, is closed by Google Cloud's firewall rule for TPUs:
        # github.com/jax-ml/jax/issues/35905.
        port = {"JAX_COORDINATOR_PORT": str(self.coordinator_port)}
        return port | ({"EMOJAX_CACHE": _CACHE} if self.nfs else {})

    @property
    def command(self) -> list[str]:
        """What every process runs: the same on each host."""
        return [
            *("python", "-m", "experiments.train_sae", *self.train),
            "--distributed",
            f"--start_timeout={self.start_timeout}",
            f"--heartbeat_timeout={self.heartbeat_timeout}",
        ]


def check_training(job: Job) -> None:
    """Reads the job's config, where it lies in this repository, and lays its mesh over the slices.

    Raises:
      UserError: the config, an override, the mesh, the sizes of a stream or the split of the
        language model would be refused on the pod.
    """
    path = Path(option(job.train, "config") or "")
    if path.is_relative_to(SHARED):
        return
    config = configs.load(path, list(options(job.train, "set")))
    devices = job.slices.chips * job.slices.count * job.slices.chip.devices
    for each in configs.sweep(config, list(options(job.train, "sweep"))).values():
        state.mesh_parts(
            each.train, each.sae.n_latents, devices, job.slices.count, use_all=devices > 1
        )
        pipeline.check_config(each, "tpu")
    shards, own = config.activations.model_shards, job.slices.devices_per_host
    if own % shards:
        raise UserError(
            f"A copy of the language model cannot be split over {shards} of the {own} devices of a "
            f"{job.slices.kind} host; set activations.model_shards to a number that divides them."
        )


def option(words: Sequence[str], name: str) -> str | None:
    """The value of the first `--name value` or `--name=value` among words, or None."""
    return next(options(words, name), None)


def options(words: Sequence[str], name: str) -> Iterator[str]:
    """The value of each `--name value` or `--name=value` among words."""
    for i, word in enumerate(words):
        if word == f"--{name}" and i + 1 < len(words):
            yield words[i + 1]
        elif word.startswith(f"--{name}="):
            yield word.partition("=")[2]


def execute(command: Sequence[str], stdin: str | None = None) -> str:
    """Runs one command of a cloud's tool, shows it, and returns what it printed.

    Raises:
      UserError: the tool is missing or fails.
    """
    print(f"+ {shlex.join(command)}", file=sys.stderr)
    try:
        done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            f"The program {command[0]} is missing; install it (tpu/README.md), or use --dry_run."
        ) from error
    if done.returncode:
        raise UserError(
            f"The command {shlex.join(command[:5])} … failed with status {done.returncode}; see "
            "its message above."
        )
    return done.stdout
