"""Which CPU a benchmark ran on."""

import platform
from pathlib import Path


def name() -> str:
    """The CPU by the name that Linux has for it, and the family and model that tell it apart.

    Ratios between libraries differ from one generation of CPUs to the next.
    """
    said: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        pairs = (line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        said = {key.strip(): value.strip() for key, value in pairs}
    if "model name" not in said:
        return platform.machine()
    kind = f"{said['model name']} (family {said.get('cpu family')} model {said.get('model')})"
    return f"{kind} with AVX-512" if "avx512f" in said.get("flags", "").split() else kind
