from pathlib import Path

from benchmarks import processor

TOLD = """processor\t: 0
model name\t: Some CPU
cpu family\t: 6
model\t\t: 143
flags\t\t: fpu avx512f amx_tile
"""


def test_a_processor_has_its_name_family_and_widest_products(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(TOLD)
    assert processor.name(cpuinfo) == "Some CPU (family 6 model 143) with AVX-512 and AMX"
    cpuinfo.write_text(TOLD.replace(" avx512f amx_tile", ""))
    assert processor.name(cpuinfo) == "Some CPU (family 6 model 143)"


def test_elsewhere_it_is_the_kind_of_machine(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nBogoMIPS : 48.00\n")
    assert processor.name(cpuinfo) == processor.name(tmp_path / "absent") != ""
