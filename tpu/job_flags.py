"""The flags that the three launchers share, and the job that they describe."""

import shlex

from absl import flags

from emojax.errors import UserError
from tpu.chips import Slices
from tpu.job import SHARED, Job, check_training

NAME = flags.DEFINE_string("name", None, "Name of the job.", required=True)
TPU = flags.DEFINE_string("tpu", "v5e", "Kind of TPU: v5e, v5p, v6e or tpu7x.")
CHIPS = flags.DEFINE_integer("chips", 16, "Chips of one slice.")
SLICES = flags.DEFINE_integer("slices", 1, "Number of slices.")
IMAGE = flags.DEFINE_string("image", None, "Container image (see tpu/Dockerfile).", required=True)
TRAIN = flags.DEFINE_string(
    "train", None, "Arguments of experiments.train_sae, in one string.", required=True
)
NFS = flags.DEFINE_string("nfs", None, f"server:/share, if one is to be {SHARED} on every host.")
PORT = flags.DEFINE_integer("coordinator_port", 8476, "Port of JAX's coordinator.")
START = flags.DEFINE_integer("start_timeout", 1800, "Seconds to wait for all hosts.")
HEARTBEAT = flags.DEFINE_integer("heartbeat_timeout", 100, "Seconds until a silent host is lost.")
GRACE = flags.DEFINE_integer("grace", 600, "Seconds from SIGTERM to the end, for a checkpoint.")
RESTARTS = flags.DEFINE_integer("max_restarts", 50, "How often a job that failed starts again.")
SPOT = flags.DEFINE_bool("spot", False, "Cheaper capacity that can be taken away.")
RESERVATION = flags.DEFINE_string("reservation", None, "Reserved capacity, by name.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be sent, and send nothing.")


def from_flags() -> Job:
    """The job that the flags describe.

    Raises:
      UserError: a value does not fit, or what is to be trained does not fit the slices.
    """
    try:
        train = tuple(shlex.split(TRAIN.value))
    except ValueError as error:
        raise UserError(f"The --train string cannot be read ({error}); mend its quotes.") from error
    job = Job(
        name=NAME.value,
        slices=Slices(TPU.value, CHIPS.value, SLICES.value),
        image=IMAGE.value,
        train=train,
        nfs=NFS.value,
        coordinator_port=PORT.value,
        start_timeout=START.value,
        heartbeat_timeout=HEARTBEAT.value,
        grace=GRACE.value,
        max_restarts=RESTARTS.value,
        spot=SPOT.value,
        reservation=RESERVATION.value,
    )
    check_training(job)
    return job
