"""Which CPU a benchmark ran on."""

import platform
from pathlib import Path

# What decides how fast products are, by Linux's names.
_WIDE = {"avx512f": "AVX-512", "amx_tile": "AMX"}


def name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU by the name that Linux has for it, and the family and model that tell it apart.

    Ratios between libraries differ from one generation of CPUs to the next.
    """
    said: dict[str, str] = {}
    if cpuinfo.exists():
        pairs = (line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        said = {key.strip(): value.strip() for key, value in pairs}
    if "model name" not in said:
        return platform.machine()
    kind = f"{said['model name']} (family {said.get('cpu family')} model {said.get('model')})"
    flags = said.get("flags", "").split()
    wide = [name for flag, name in _WIDE.items() if flag in flags]
    return f"{kind} with {' and '.join(wide)}" if wide else kind
