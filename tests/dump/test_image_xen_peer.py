"""Cores that Xen's own writer makes here and now, of memory that is known."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from dump.cores import write_sparse
from vectors import minios

from xenlive.dump import Image
from xenlive.memory.address import PAGE_SIZE

pytestmark = pytest.mark.peer

MODULE = minios.module_image("p9-18-64", "boot1-boot")
N_PAGES = 1024
PLACE = (N_PAGES - 40) * PAGE_SIZE
HOLE = range(0xA0, 0xC0)

Dumper = Callable[..., Path]


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Dumper:
    """Dumps a RAM file as a domain `hvm` or `pv`, but for frames that can't be mapped."""
    folder = tmp_path_factory.mktemp("xendump")
    source = Path(__file__).with_name("xendump.c")
    program = folder / "xendump"
    header = Path("/usr/include/xenctrl.h")
    # Until Xen 4.17: what the writer asks of libxenctrl has other names since.
    known = header.exists() and "xc_dominfo_t" in header.read_text(errors="replace")
    if shutil.which("gcc") is None or not known:
        if os.environ.get("XENLIVE_REQUIRE_PEERS", "") not in ("", "0"):
            pytest.fail("gcc or libxenguest (libxen-dev of Xen 4.17) is missing")
        pytest.skip("gcc or libxenguest (libxen-dev of Xen 4.17) is missing")
    options = ["-rdynamic", "-w", "-lxenguest", "-lxenctrl"]
    subprocess.run(["gcc", "-o", str(program), str(source), *options], check=True)

    def run(ram: Path, type_: str, *lost: int) -> Path:
        core = ram.with_name(f"{type_}.core")
        subprocess.run([program, type_, ram, core, *map(str, lost)], check=True)
        return core

    return run


@pytest.fixture
def ram(tmp_path: Path) -> Path:
    """4 MiB, each page marked with its number, and the module near their end."""
    marks = [(page * PAGE_SIZE, page.to_bytes(8, "little")) for page in range(N_PAGES)]
    return write_sparse(tmp_path / "ram", N_PAGES * PAGE_SIZE, [*marks, (PLACE, MODULE)])


@pytest.mark.parametrize("type_", ["hvm", "pv"])
@pytest.mark.parametrize("lost", [(), (3, 4, N_PAGES - 1)])
def test_a_core_has_what_the_memory_had(
    dump: Dumper, ram: Path, type_: str, lost: tuple[int, ...]
) -> None:
    memory = ram.read_bytes()
    with Image(dump(ram, type_, *lost)) as image:
        assert image.kind == "xen-core"
        assert image.find_module().address == PLACE
        for page in range(N_PAGES):
            address = page * PAGE_SIZE
            expected = memory[address : address + PAGE_SIZE]
            if page in lost or page in HOLE:
                expected = b""
            assert image.read_phys(address, PAGE_SIZE) == expected
            assert image.has(address, PAGE_SIZE) == bool(expected)
        assert sum(region.size_bytes for region in image.regions()) == (
            (N_PAGES - len(HOLE) - len(lost)) * PAGE_SIZE
        )
