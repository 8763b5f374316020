"""The tiles of the Triton encoders' GEMM, by dtype: data, so that tuning edits no code."""

import dataclasses
import json
from importlib import resources

FILE = resources.files("emojax_kernels.topk_encode") / "tiles.json"


@dataclasses.dataclass(frozen=True)
class Tile:
    """How the GEMM is cut up.

    Attributes:
        rows: tokens of a program's tile.
        latents: latents of it, a multiple of the group (64).
        columns: of x and the dictionary that are multiplied at a time.
        num_warps: warps per program.
        num_stages: of the software pipeline.
    """

    rows: int
    latents: int
    columns: int
    num_warps: int
    num_stages: int


TILES = {dtype: Tile(**sizes) for dtype, sizes in json.loads(FILE.read_text()).items()}
