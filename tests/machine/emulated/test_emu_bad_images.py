"""Files that are no kernel for the domain: one line each, in Python and at the command line."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kexec.elves import Elf, Load, kernel, note

from xenlive.errors import ConfigError, ImageError, ModuleError, XenliveError
from xenlive.machine.emulated.build import Module, load_kernel, make_domain
from xenlive.machine.emulated.hypervisor.domain import Domain
from xenlive.machine.emulated.interface import Clock
from xenlive.memory.address import PAGE_SIZE

MIB = 1 << 20
GOOD = kernel()


@pytest.fixture(scope="module")
def domain() -> Iterator[Domain]:
    """A domain of 4 MiB."""
    made = make_domain(1, 4 * MIB, {}, Clock())
    yield made
    made.space.close()


def refused(domain: Domain, image: bytes, *how: object) -> str:
    """The code of the one error, which is one line; nothing was stored."""
    before = domain.space.read(0, 4 * MIB)
    with pytest.raises(XenliveError) as error:
        load_kernel(domain, image, *how)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    assert domain.space.read(0, 4 * MIB) == before
    return error.value.code if isinstance(error.value, ImageError) else type(error.value).__name__


def with_note(notes: bytes) -> bytes:
    """A kernel with these notes alone."""
    return Elf([Load(MIB, b"x")], None, more_notes=notes).build()


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("loads", "entry", "code"),
    [
        # It does not fit: behind the end, over it, into what Xen put there, above 4 GiB.
        ([Load(4 * MIB, b"x")], None, "kernel-too-large"),
        ([Load(4 * MIB - 1, b"xx")], None, "kernel-too-large"),
        ([Load(MIB, b"x", memsz=3 * MIB + 1)], None, "kernel-too-large"),
        ([Load(MIB, b"x", memsz=3 * MIB)], None, "kernel-too-large"),  # no start info
        ([Load(0xFEFF8000, b"x")], None, "kernel-too-large"),
        ([Load(0xFFFFFFF0, b"x" * 16)], None, "kernel-too-large"),
        # Addresses that wrap.
        ([Load(0xFFFFFFF0, b"x" * 17)], None, "elf-segment-address"),
        ([Load(MIB, b"x", memsz=0xFFFFFFFF)], None, "elf-segment-address"),
        # One over the other.
        ([Load(MIB, b"x" * 100), Load(MIB + 99, b"y")], None, "elf-segments-overlap"),
        ([Load(MIB, b"x" * 10), Load(MIB, b"y")], None, "elf-segments-overlap"),
        ([Load(MIB, b"x", memsz=9000), Load(MIB + 4096, b"y")], None, "elf-segments-overlap"),
        # More bytes in the file than in memory, and none at all.
        ([Load(MIB, b"xyz", memsz=2)], None, "elf-segment-size"),
        ([Load(MIB, b"", memsz=0)], MIB, "elf-no-segments"),
        # The entry: before, behind, in the bss.
        ([Load(MIB, b"x")], MIB - 1, "elf-entry-outside"),
        ([Load(MIB, b"x")], MIB + 1, "elf-entry-outside"),
        ([Load(MIB, b"x", memsz=100)], MIB + 50, "elf-entry-outside"),
        ([Load(MIB, b"x")], 0, "elf-entry-outside"),
        ([Load(MIB, b"x")], 0xFFFFFFFF, "elf-entry-outside"),
    ],
)
def test_segments_and_entries(
    domain: Domain, bits: int, loads: list[Load], entry: int | None, code: str
) -> None:
    assert refused(domain, kernel(loads, entry=entry, bits=bits)) == code


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (b"", "elf-magic"),
        (b"\x7fELF", "elf-truncated"),
        (b"\x7fELF" + bytes(200), "elf-class"),
        (GOOD[:100], "elf-truncated"),
        (GOOD[: len(GOOD) // 2], "elf-truncated"),
        (b"\x1f\x8b" + GOOD, "elf-magic"),
        (b"#!/bin/sh\n" * 20, "elf-magic"),
        (kernel(machine=183), "elf-machine"),
        (kernel(ident={5: 2}), "elf-byte-order"),
        (kernel(ident={4: 3}), "elf-class"),
        (kernel(notes_in="neither"), "elf-no-entry"),
        (with_note(b""), "elf-no-entry"),
        (kernel(entry_size=3, entry=5), "elf-entry-size"),
        (kernel(header={"e_phnum": 0xFFFF}), "elf-headers"),
        (kernel(header={"e_phentsize": 1}), "elf-headers"),
        (kernel(header={"e_phoff": (1 << 64) - 8}), "elf-truncated"),
        (kernel(notes_size=1 << 30), "elf-notes"),
        # A note of another owner with the same number, and one that ends nowhere.
        (with_note(note(b"GNU\0", 18, bytes(4))), "elf-no-entry"),
        (with_note(struct.pack("<III", 4, 1 << 31, 18)), "elf-notes"),
    ],
)
def test_files_and_notes_that_lie(domain: Domain, image: bytes, code: str) -> None:
    assert refused(domain, image) == code


def test_modules_and_lines_that_can_not_be_handed_over(domain: Domain) -> None:
    assert refused(domain, GOOD, "", [Module(bytes(3 * MIB))]) == "kernel-too-large"
    assert refused(domain, GOOD, "", [Module(bytes(MIB))] * 3) == "kernel-too-large"
    assert refused(domain, GOOD, "", [Module(b"")] * 100) == ModuleError.__name__
    assert refused(domain, GOOD, "x" * 4096) == ConfigError.__name__
    assert refused(domain, GOOD, "a\0b") == ConfigError.__name__
    assert refused(domain, GOOD, "\ud800") == ConfigError.__name__
    for line in ("x" * 4096, "a\0b", "\ud800"):
        assert refused(domain, GOOD, "", [Module(b"m", line)]) == ConfigError.__name__


def test_lines_of_any_bytes_are_handed_over_as_they_came(domain: Domain) -> None:
    odd = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
    loaded = load_kernel(domain, GOOD, odd, [Module(b"m", odd)])
    block = domain.space.read(loaded.start_info, PAGE_SIZE)
    assert block.count(b"caf\xe9 \xff\0") == 2


def test_a_kernel_over_what_is_handed_over(domain: Domain) -> None:
    for at in (0x100000, 0x101FFF, 0x104000):
        assert refused(domain, GOOD, "", [], [(at, 1, "")]) == "kernel-overlaps"


# ---- any bytes -----------------------------------------------------------------------------------

NUMBERS = st.sampled_from(
    [0, 1, 8, 0x7F, 0xFF, 0x1000, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1]
)
ELVES = st.builds(
    lambda loads, entry, bits, more: kernel(
        [Load(at, data, memsz=None if size is None else size) for at, data, size in loads],
        entry=entry & (1 << bits) - 1,
        bits=bits,
        entry_size=bits // 8,
        notes_in=more,
    ),
    st.lists(
        st.tuples(
            st.sampled_from([0, 0x1000, MIB, MIB + 0x800, 4 * MIB - 8, 0xFFFFF000, 0xFFFFFFFF]),
            st.binary(max_size=24),
            st.none() | st.sampled_from([0, 1, 24, 0x3000, 3 * MIB, 0xFFFFFFFF]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([0, 0x1000, MIB, MIB + 4, 0xFFFFFFFF, (1 << 64) - 1]),
    st.sampled_from([32, 64]),
    st.sampled_from(["program", "section", "both", "neither"]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ELVES,
    st.lists(st.tuples(st.integers(0, 700), NUMBERS, st.sampled_from([1, 2, 4, 8])), max_size=3),
)
def test_any_elf_is_loaded_or_one_error(
    domain: Domain, elf: bytes, changes: list[tuple[int, int, int]]
) -> None:
    image = bytearray(elf)
    for at, value, size in changes:
        if at + size <= len(image):
            image[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
    try:
        loaded = load_kernel(domain, bytes(image))
    except (ImageError, ConfigError) as error:
        said = str(error)
    else:
        said = ""
        assert domain.space.is_backed(loaded.entry, 1)
        assert domain.space.is_backed(loaded.start_info, 56)
    assert "\n" not in said


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_one_error(domain: Domain, data: bytes, cut: int) -> None:
    for image in (data, GOOD[:cut] + data, b"\x7fELF" + data):
        with pytest.raises(ImageError) as error:
            load_kernel(domain, image)
        assert "\n" not in str(error.value)


# ---- at the command line -------------------------------------------------------------------------


def boot(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `xenlive boot`."""
    done = subprocess.run(
        [sys.executable, "-m", "xenlive", "boot", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_command_says_one_line(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.elf", tmp_path / "bad.elf"
    good.write_bytes(kernel([Load(MIB, b"\xf4", memsz=MIB)]))
    bad.write_bytes(kernel([Load(MIB, b"x"), Load(MIB, b"y")]))
    large = tmp_path / "large"
    large.write_bytes(bytes(MIB))
    for words, told in (
        ((str(bad),), "elf-segments-overlap"),
        ((str(good), "--memory", "4M", *("--module", str(large)) * 3), "kernel-too-large"),
        ((str(good), *("--module", str(bad)) * 65), "at most 64 modules"),
        ((str(good), "--with", str(bad)), "elf-segments-overlap"),
    ):
        code, out, error = boot(*words)
        assert (code, out, error.count("\n")) == (1, "", 1), (words, error)
        assert told in error
