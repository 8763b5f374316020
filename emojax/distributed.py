"""Starting JAX where several processes work on one job: TPU pods, Slurm, or by hand.

Programs that can run so import this module, which defines its flags, and call `from_flags` before
anything else. Without the flags, on one machine, nothing happens.
"""

import logging
import os
from collections.abc import Mapping

import jax
from absl import flags

from emojax.errors import UserError

DISTRIBUTED = flags.DEFINE_bool("distributed", False, "This is one of several processes.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes there are.")
PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0.")
START_TIMEOUT = flags.DEFINE_integer("start_timeout", 1800, "Seconds to wait for all processes.")
HEARTBEAT_TIMEOUT = flags.DEFINE_integer(
    "heartbeat_timeout", 100, "Seconds of silence after which a process is given up."
)


def from_flags() -> bool:
    """`initialize` with what the flags say."""
    return initialize(
        asked=DISTRIBUTED.value,
        coordinator=COORDINATOR.value,
        processes=PROCESSES.value,
        process=PROCESS.value,
        start_timeout=START_TIMEOUT.value,
        heartbeat_timeout=HEARTBEAT_TIMEOUT.value,
    )


def initialize(
    *,
    asked: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    start_timeout: int = 1800,
    heartbeat_timeout: int = 100,
) -> bool:
    """Joins this process to its job, once, before JAX looks for devices.

    Cloud TPU, GKE and Slurm tell JAX who is where; elsewhere the first three values do. Where they
    tell it, JAX's coordinator listens on port 8482 unless the environment sets
    JAX_COORDINATOR_PORT; Google Cloud's own firewall rule opens 8476 and not 8482
    (github.com/jax-ml/jax/issues/35905), so that our launchers set 8476.

    Args:
      asked: join even if the environment does not speak of several processes.
      coordinator: host:port of process 0, reachable from all.
      processes: how many there are.
      process: which one this is, from 0.
      start_timeout: seconds to wait for the others.
      heartbeat_timeout: seconds of silence after which one is given up, and all stop.

    Returns:
      Whether this process is now, or was already, one of a job that JAX knows.

    Raises:
      UserError: only some of the three are given, they do not fit, a timeout is not positive, no
        job was found.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise UserError(
            f"The start of several processes lacks {' and '.join(missing)}; give all of "
            "--coordinator, --processes and --process, or none."
        )
    if coordinator is not None and processes is not None and process is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise UserError(f"The coordinator {coordinator!r} is no host:port; give 10.0.0.2:8476.")
        if not 0 <= process < processes:
            raise UserError(
                f"Process {process} of {processes} does not exist; count from 0 to "
                f"{max(processes - 1, 0)}."
            )
    for name, seconds in (("start", start_timeout), ("heartbeat", heartbeat_timeout)):
        if seconds < 1:
            raise UserError(f"The {name}_timeout is {seconds} s; give at least 1.")
    if jax.distributed.is_initialized():
        return True
    if not (asked or coordinator or several(os.environ)):
        return False
    # When time is up JAX aborts (DEADLINE_EXCEEDED) and raises nothing: say before what to do.
    logging.info(
        "Waiting up to %d s for the other processes: start the same command on every host.",
        start_timeout,
    )
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=start_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except ValueError as error:
        # JAX's word for an environment in which it found no job.
        raise UserError(
            f"No job of several processes was found here ({error}); drop --distributed, or give "
            "--coordinator, --processes and --process."
        ) from error
    return True


def several(environment: Mapping[str, str]) -> bool:
    """Whether GKE's variables speak of more than one process."""
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
    return "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
