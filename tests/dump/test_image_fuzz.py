"""Hostile dumps: sound cores with numbers changed, cut and joined. One `ImageError` or a module.

python -m dump.test_image_fuzz COUNT [SEED]        (with `tests` on the path) for many more
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
import time
from pathlib import Path

import pytest
from dump.cores import INVALID, MAGIC_PV, Segment, XenCore, write_elf_core
from vectors import minios

from xenlive.dump import Image
from xenlive.errors import ImageError
from xenlive.memory.address import PAGE_SIZE

MODULE = minios.host_image("empty4")
COUNT = 800
TELLING = [0, 1, 2, 4, 8, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0xFFFE, 0xFFFF, 0x10000]
TELLING += [0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 40, 1 << 62, 1 << 63, INVALID]


def seeds(folder: Path) -> list[bytearray]:
    """A core of each kind, each with a module in it."""
    path = folder / "seed"
    pages = {index: MODULE[index * PAGE_SIZE :][:PAGE_SIZE] for index in range(4)}
    found = []
    for magic in (XenCore([], {}).magic, MAGIC_PV):
        XenCore([16, 17, 18, 19, INVALID, 3], pages, magic=magic).write(path)
        found.append(bytearray(path.read_bytes()))
    for bits in (32, 64):
        for many in (False, True):
            segments = [Segment(0, 96), Segment(0x10000, 16384, [(0, MODULE)])]
            write_elf_core(path, segments, bits=bits, many=many)
            found.append(bytearray(path.read_bytes()))
    return found


def hostile(seed: bytearray, rng: random.Random) -> bytes:
    """A copy with up to six numbers changed, and now and then cut or grown."""
    data = bytearray(seed)
    for _ in range(rng.randint(1, 6)):
        size = rng.choice((1, 2, 4, 8))
        # Mostly in the headers, at a field of its size, else where tables and modules are.
        at = rng.randrange(0, 1024 if rng.random() < 0.8 else len(data) - 8)
        at -= at % size
        value = rng.choice(TELLING) if rng.random() < 0.7 else rng.getrandbits(64)
        if rng.random() < 0.2:
            value = struct.unpack_from("<Q", data, at)[0] + rng.choice((-1, 1, 4096, -4096))
        data[at : at + size] = (value & INVALID).to_bytes(8, "little")[:size]
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    if rng.random() < 0.1:
        data += bytes(rng.randrange(10_000))
    return bytes(data)


def look(path: Path, kind: str = "auto") -> str:
    """Everything that can be asked of an image; the code of its error, or `found`."""
    try:
        with Image(path, kind) as image:
            regions = image.regions()
            for region in regions[:10]:
                if region.address is not None:
                    assert image.has(region.address, region.size_bytes)
                    image.read_phys(region.address, 5000)
            for found in [image.find_module(), *image.find_modules()]:
                assert found.admin_page.startswith(b"KexecMem")
                assert found.size_bytes > 0
                found.read_page(0)
            return "found"
    except ImageError as error:
        return error.code if "\n" not in str(error) else "more than a line"


def attack(folder: Path, count: int, first_seed: int) -> dict[str, int]:
    """How often each outcome came of `count` hostile images."""
    known = seeds(folder)
    path = folder / "hostile"
    outcomes: dict[str, int] = {}
    for number in range(first_seed, first_seed + count):
        rng = random.Random(number)
        path.write_bytes(hostile(rng.choice(known), rng))
        try:
            outcome = look(path, rng.choice(("auto", "auto", "auto", "xen-core", "elf-core")))
        except BaseException:
            print(f"repeat with: python -m dump.test_image_fuzz 1 {number}", file=sys.stderr)
            raise
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


def test_the_seeds_are_sound(tmp_path: Path) -> None:
    for seed in seeds(tmp_path):
        (tmp_path / "seed").write_bytes(seed)
        assert look(tmp_path / "seed") == "found"


@pytest.mark.parametrize("first_seed", [0, 1 << 32])
def test_hostile_cores(first_seed: int, tmp_path: Path) -> None:
    outcomes = attack(tmp_path, COUNT // 2, first_seed)
    assert len(outcomes) > 7, outcomes  # else it does not reach far
    assert "more than a line" not in outcomes
    assert outcomes["found"] > COUNT // 20


def main() -> None:
    count, first_seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    start_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = attack(Path(folder), count, first_seed)
    print(f"{count} hostile dumps in {time.monotonic() - start_s:.0f} s")
    for code, times in sorted(outcomes.items(), key=lambda item: -item[1]):
        print(f"{times:9}  {code}")


if __name__ == "__main__":
    main()
