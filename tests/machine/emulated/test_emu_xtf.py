"""Xen's test framework: all images for HVM, as PVH guests, if XENLIVE_XTF names a built tree.

    git clone https://xenbits.xen.org/git-http/xtf.git && make -C xtf
    XENLIVE_XTF=xtf pytest tests/machine/emulated/test_emu_xtf.py

The verdicts are those of a Xen 4.17 as Debian builds it, on a processor of AMD's without the
features that this one lacks: what needs the forced emulation prefix (a debugging aid that is
compiled out), nested virtualisation, an HPET or Argo skips itself; the test of that prefix fails.
Three are about Hyper-V's registers, which PVH guests have none of: they die of a general protection
fault, and the one of them that wants three vcpus first gives up here, where there is one.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from xenlive.machine.emulated.world import WORLD_ENDED, World

_XTF = os.environ.get("XENLIVE_XTF", "")
pytestmark = pytest.mark.skipif(not _XTF, reason="XENLIVE_XTF names no built tree of XTF")

_MEMORY_BYTES = 128 << 20
_SKIP = re.compile(
    "(argo|cpuid-faulting|fpu-exception-emulation|nested-svm|nested-vmx|swint-emulation|umip"
    "|xsa-(123|170|186|191|196|200|203|204|261|451|462|470))$"
)
_OTHERS = {
    "hvm32-fep": "FAILURE",
    "hvm32-xsa-472-1": "PANIC",
    "hvm32-xsa-472-2": "PANIC",
    "hvm32-xsa-472-3": "ERROR",
}


def _images() -> list[Path]:
    found = Path(_XTF or "/nowhere").glob("tests/*/test-hvm*")
    return sorted(image for image in found if not image.suffix)


def _expected(name: str) -> str:
    if name in _OTHERS:
        return _OTHERS[name]
    return "SKIP" if _SKIP.search(name) else "SUCCESS"


@pytest.mark.parametrize("image", _images(), ids=lambda image: image.name)
def test_verdict(image: Path) -> None:
    said = bytearray()
    with World() as world:
        guest = world.add_guest("xtf", _MEMORY_BYTES, said.extend)
        guest.boot(image.read_bytes())
        assert world.run() == WORLD_ENDED
    text = said.decode("latin-1")
    found = re.search(r"^Test result: (\w+)|^(PANIC)", text, re.MULTILINE)
    assert found, text
    assert (found[1] or found[2]) == _expected(image.name.removeprefix("test-")), text


def test_all_images_are_there() -> None:
    assert len(_images()) == 100
