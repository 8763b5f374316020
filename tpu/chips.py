"""The TPUs that a job can ask for: what they are called, how they are put together, how fast."""

import dataclasses
import math

from emojax.errors import UserError
from emojax.sae.speed import PEAKS

GB = 1e9
GIB = 2**30

# Shapes of slices by number of chips: docs.cloud.google.com/tpu/docs/v6e (flat) and
# cloud.google.com/tpu/docs/supported-tpu-configurations (cubes).
FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
    4096: "16x16x16",
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU, with published figures: none was measured by us.

    Attributes:
      accelerator: its name in accelerator types, before the number.
      counts_cores: whether that number counts TensorCores (two per chip) instead of chips.
      gke: its name in GKE's node labels.
      runtime: the software version of its VMs; None where there are no TPU VMs outside GKE.
      topologies: shapes of slices by number of chips.
      host_chips: chips of one VM in a slice of several VMs.
      single_host_chips: the most chips that a slice of one VM has.
      devices: JAX devices per chip.
      flops: peak bfloat16 FLOP/s of a chip.
      hbm_bytes: memory of a chip.
      hbm_rate: memory bandwidth of a chip, bytes/s.
      ici_rate: bandwidth of all of a chip's links within a slice, one way, bytes/s.
      dcn_rate: a chip's share of its VM's network, bytes/s.
    """

    accelerator: str
    counts_cores: bool
    gke: str
    runtime: str | None
    topologies: dict[int, str]
    host_chips: int
    single_host_chips: int
    devices: int
    flops: float
    hbm_bytes: float
    hbm_rate: float
    ici_rate: float
    dcn_rate: float


# Figures of v5p, v6e and tpu7x: docs.cloud.google.com/tpu/docs/tpu7x, which gives links in both
# directions (halved here) and DCN in bits. v5e: the older column of cloud.google.com/tpu/docs/v6e:
# links 1600 Gb/s, DCN 6.4 Tb/s per pod of 256.
CHIPS = {
    "v5e": Chip(
        accelerator="v5litepod",
        counts_cores=False,
        gke="tpu-v5-lite-podslice",
        runtime="v2-alpha-tpuv5-lite",
        topologies=FLAT,
        host_chips=4,
        single_host_chips=8,
        devices=1,
        flops=PEAKS["TPU v5 lite"],
        hbm_bytes=16 * GIB,
        hbm_rate=819 * GB,
        ici_rate=200 * GB,
        dcn_rate=25 * GB / 8,
    ),
    "v5p": Chip(
        accelerator="v5p",
        counts_cores=True,
        gke="tpu-v5p-slice",
        runtime="v2-alpha-tpuv5",
        topologies=CUBES,
        host_chips=4,
        single_host_chips=4,
        devices=1,
        flops=PEAKS["TPU v5p"],
        hbm_bytes=95 * GIB,
        hbm_rate=2765 * GB,
        ici_rate=600 * GB,
        dcn_rate=50 * GB / 8,
    ),
    "v6e": Chip(
        accelerator="v6e",
        counts_cores=False,
        gke="tpu-v6e-slice",
        runtime="v2-alpha-tpuv6e",
        topologies=FLAT,
        host_chips=4,
        single_host_chips=8,
        devices=1,
        flops=PEAKS["TPU v6 lite"],
        hbm_bytes=32 * GIB,
        hbm_rate=1638 * GB,
        ici_rate=400 * GB,
        dcn_rate=100 * GB / 8,
    ),
    "tpu7x": Chip(
        accelerator="tpu7x",
        counts_cores=True,
        gke="tpu7x",
        runtime=None,
        topologies=CUBES,
        host_chips=4,
        single_host_chips=4,
        devices=2,
        flops=2 * PEAKS["TPU7x"],
        hbm_bytes=192 * GIB,
        hbm_rate=7380 * GB,
        ici_rate=600 * GB,
        dcn_rate=100 * GB / 8,
    ),
}


@dataclasses.dataclass(frozen=True)
class Slices:
    """Slices of one kind and size: chips within one share fast links, slices a network.

    Attributes:
      kind: a key of `CHIPS`.
      chips: chips of one slice.
      count: how many slices.
    """

    kind: str
    chips: int
    count: int = 1

    def __post_init__(self):
        if self.kind not in CHIPS:
            raise UserError(f"The TPU {self.kind!r} is unknown; use one of {', '.join(CHIPS)}.")
        sizes = CHIPS[self.kind].topologies
        if self.chips not in sizes:
            raise UserError(
                f"A slice of {self.chips} {self.kind} chips does not exist; give one of "
                f"{', '.join(map(str, sizes))}."
            )
        if self.count < 1:
            raise UserError(f"The number of slices is {self.count}; give at least 1.")

    @property
    def chip(self) -> Chip:
        """What the slices are made of."""
        return CHIPS[self.kind]

    @property
    def topology(self) -> str:
        """Shape of one slice, such as 4x4."""
        return self.chip.topologies[self.chips]

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's name of one slice, such as v5litepod-16 or v5p-32 (which has 16 chips)."""
        number = self.chips * 2 if self.chip.counts_cores else self.chips
        return f"{self.chip.accelerator}-{number}"

    @property
    def chips_per_host(self) -> int:
        """Chips that one VM, and so one process, has."""
        single = self.chips <= self.chip.single_host_chips
        return self.chips if single else self.chip.host_chips

    @property
    def devices_per_host(self) -> int:
        """JAX devices that one process captures on."""
        return self.chips_per_host * self.chip.devices

    @property
    def hosts(self) -> int:
        """VMs of one slice."""
        return math.ceil(self.chips / self.chips_per_host)

    @property
    def processes(self) -> int:
        """Processes of the whole job."""
        return self.hosts * self.count
