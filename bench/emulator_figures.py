"""Figures of the emulated machine: boots of small and large kernels, speed, memory, beside QEMU.

    bench/emulator_figures.py [--quick] [--rounds N] [--json FILE]

Each round measures everything once, one after the other, so that what disturbs the machine for a
while disturbs no figure more than others; what counts is the median of the rounds. Time is CPU time
of this process where all happens in it, and wall time where QEMU is compared, which runs right
after ours; its figure is ours divided by QEMU's.

**Invariants.** Every figure is measured in this run. What can't be measured here (a package is
missing) is left out, and a line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]

from figures import Figure, as_objects, table_of  # noqa: E402
from kernels.building import build_kernel  # noqa: E402
from kernels.debian import packages  # noqa: E402
from kernels.debian.initrd import PROMPT, build_initrd  # noqa: E402
from kernels.handover.script_kernel import script_kernel  # noqa: E402
from machine.emulated import small_guests  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from xenlive.machine.emulated.build import Module  # noqa: E402
from xenlive.machine.emulated.lens.trace import Trace  # noqa: E402
from xenlive.machine.emulated.world import WORLD_PAUSED, World  # noqa: E402

ROUNDS = 5
MIB, GIB = 1 << 20, 1 << 30
SECOND_NS = 1_000_000_000
LINUX_BYTES = 256 * MIB
QEMU = "qemu-system-x86_64"

# A loop of two instructions, and one of seven with a call, a load and a store in three blocks.
TIGHT = small_guests.kernel("movl $30000000, %ecx\n2: decl %ecx\n jnz 2b\n put $10\n kick")
TIGHT_INSTRUCTIONS = 2 * 30_000_000
MIXED = small_guests.kernel(
    """
        movl $6000000, %ecx
2:      call 3f
        decl %ecx
        jnz 2b
        put $10
        kick
4:      jmp 4b
3:      movl 0x200000, %eax
        addl %ecx, %eax
        movl %eax, 0x200000
        ret
"""
)
MIXED_INSTRUCTIONS = 7 * 6_000_000


class Unmeasured(Exception):
    """A guest did not do what was to be timed."""


def boot_s(
    kernel: bytes,
    until: bytes,
    memory_bytes: int = 16 * MIB,
    cmdline: str = "",
    modules: Sequence[Module] = (),
    watch: Callable[[World], object] = lambda world: None,
    times: int = 1,
) -> float:
    """CPU seconds until `until` was `times` on the console, from a process with all imports on."""
    seen = bytearray()
    began_s = time.process_time()
    with World() as world:
        guest = world.add_guest("guest", memory_bytes, seen.extend)
        guest.boot(kernel, cmdline, modules)
        watch(world)
        state = world.run(until=lambda: seen.count(until) >= times, until_ns=100 * SECOND_NS)
        took_s = time.process_time() - began_s
    if state != WORLD_PAUSED:
        raise Unmeasured(f"no {until!r} came, but {bytes(seen[-200:])!r}")
    return took_s


def millions_per_s(kernel: bytes, instructions: int) -> float:
    """Millions of instructions per CPU second, of a kernel that writes a line after so many."""
    return instructions / boot_s(kernel, b"\n") / 1e6


def trace_lines(lines: list[str]) -> Callable[[World], object]:
    """Traces the first guest of a world, exceptions too, into `lines`."""
    return lambda world: Trace(world.guests[0], lines.append, exceptions=True)


def resident_mib(memory_bytes: int) -> float:
    """MiB by which a process of its own grows for a guest of that size that booted."""
    command = [sys.executable, str(Path(__file__).resolve()), "--resident", str(memory_bytes)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) / MIB


def print_resident(memory_bytes: int) -> None:
    """In that process: the bytes, after another guest has brought the emulator into memory."""
    kernel = build_kernel(small_guests.SAYS_HELLO).read_bytes()
    with World() as world:
        world.add_guest().boot(kernel)
        world.run()
        before = _resident_bytes()
        world.add_guest(memory_bytes=memory_bytes).boot(kernel)
        world.run()
        print(_resident_bytes() - before)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def wall_s(command: list[str], until: bytes) -> float:
    """Wall seconds until a command has written `until`; it is ended then."""
    began_s = time.perf_counter()
    seen = bytearray()
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            while until not in seen:
                ready, _, _ = select.select([process.stdout], [], [], 120)
                piece = os.read(process.stdout.fileno(), 65536) if ready else b""
                if not piece:
                    raise Unmeasured(f"{command[0]} ended or hung: {bytes(seen[-200:])!r}")
                seen += piece
            return time.perf_counter() - began_s
        finally:
            process.kill()


class Figures:
    """Everything that is measured, each with what measures it once; what is `missing`, and why."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._measures: list[tuple[list[Figure], Callable[[], Sequence[float]]]] = []
        self.missing: list[str] = []
        self._add_small_kernels()
        self._add_speed()
        self._add_grub()
        self._add_linux()
        for size, name in ((64 * MIB, "64 MiB"), (4 * GIB, "4 GiB")):
            self._add(f"resident memory of a guest of {name}", "MiB", partial(resident_mib, size))

    def round(self, say: Callable[[str], None]) -> None:
        """Measures everything once."""
        for figures, measure in self._measures:
            say(figures[0].name)
            for figure, number in zip(figures, measure(), strict=True):
                figure.rounds.append(number)

    def figures(self) -> list[Figure]:
        """All of them, as far as they were measured."""
        return [figure for figures, _ in self._measures for figure in figures if figure.rounds]

    def _add(self, name: str, unit: str, measure: Callable[[], float]) -> None:
        self._measures.append(([Figure(name, unit)], lambda: [measure()]))

    def _add_all(
        self, names: Sequence[tuple[str, str]], measure: Callable[[], Sequence[float]]
    ) -> None:
        self._measures.append(([Figure(*name) for name in names], measure))

    def _add_small_kernels(self) -> None:
        hello = build_kernel(small_guests.SAYS_HELLO).read_bytes()
        self._add("minimal kernel to its first line", "ms", lambda: 1e3 * boot_s(hello, b"\n"))
        kernel = script_kernel(64)
        module = Module(kernel, "ticks 1")

        def kexec_ms() -> Sequence[float]:
            first_s = boot_s(kernel, b"kernel 64 bit", modules=[module])
            both_s = boot_s(
                kernel, b"kernel 64 bit", cmdline="make 18;kexec 0", modules=[module], times=2
            )
            return 1e3 * first_s, 1e3 * both_s

        names = ("C kernel to its first line", "C kernel: boot, module, kexec, second boot")
        self._add_all([(name, "ms") for name in names], kexec_ms)

    def _add_speed(self) -> None:
        loops = {
            "a tight loop": (TIGHT, TIGHT_INSTRUCTIONS),
            "a loop with calls, loads, stores": (MIXED, MIXED_INSTRUCTIONS),
        }
        for name, (assembly, instructions) in loops.items():
            kernel = build_kernel(assembly).read_bytes()
            measure = partial(millions_per_s, kernel, instructions)
            self._add(f"instructions in {name}", "M/s", measure)

    def _add_grub(self) -> None:
        if not packages.GRUB.exists():
            self.missing.append("grub-xen-host")
            return
        image = packages.GRUB.read_bytes()

        def grub() -> Sequence[float]:
            plain_s = boot_s(image, b"grub> ", 128 * MIB)
            lines: list[str] = []
            traced_s = boot_s(image, b"grub> ", 128 * MIB, watch=trace_lines(lines))
            if not lines:
                raise Unmeasured("nothing was traced")
            return plain_s, traced_s / plain_s

        self._add_all([("GRUB to its prompt", "s"), ("the same traced, times that", "x")], grub)

    def _add_linux(self) -> None:
        image, busybox = packages.linux_image(), packages.busybox()
        if image is None or busybox is None:
            self.missing.append("linux-image-cloud-amd64 or busybox-static")
            return
        kernel, initrd = packages.linux_elf(), build_initrd(busybox)
        (self._folder / "vmlinux").write_bytes(kernel)
        (self._folder / "initrd").write_bytes(initrd)
        quiet = "console=hvc0 quiet"
        self._add(
            "Linux to its shell, quiet",
            "s",
            lambda: boot_s(kernel, PROMPT, LINUX_BYTES, quiet, [Module(initrd)]),
        )
        if shutil.which(QEMU) is None:
            self.missing.append(QEMU)
            return
        ours = self._command("boot", "--module", "initrd", "--memory", "256M", "--cmdline", quiet)
        qemu = [QEMU, "-accel", "tcg", "-m", "256", "-nographic", "-no-reboot", "-net", "none"]
        qemu += ["-kernel", str(self._folder / "vmlinux"), "-initrd", str(self._folder / "initrd")]
        qemu += ["-append", "console=ttyS0 quiet"]

        def linux() -> Sequence[float]:
            ours_s, qemu_s = wall_s(ours, PROMPT), wall_s(qemu, PROMPT)
            return ours_s, qemu_s, ours_s / qemu_s

        names = ("Linux to its shell, the command", "the same by QEMU, PVH without KVM")
        self._add_all([*((name, "s") for name in names), ("ours beside QEMU's", "x")], linux)

    def _command(self, *words: str) -> list[str]:
        given = {"initrd": str(self._folder / "initrd")}
        verb, *options = (given.get(word, word) for word in words)
        return [sys.executable, "-m", "xenlive", verb, str(self._folder / "vmlinux"), *options]


def measure(
    *, rounds: int = ROUNDS, quick: bool = False, say: Callable[[str], None] = lambda text: None
) -> tuple[list[Figure], list[str]]:
    """All figures, and what was missing for others."""
    with tempfile.TemporaryDirectory(prefix="xenlive-emulator-") as folder:
        figures = Figures(Path(folder))
        for _ in range(1 if quick else rounds):
            figures.round(say)
        return figures.figures(), figures.missing


def draw(figures: list[Figure], missing: Sequence[str] = ()) -> Table:
    """The result for people."""
    caption = f"Not measured, missing: {', '.join(missing)}" if missing else None
    return table_of("The emulated machine", figures, caption)


def main() -> int:
    """Runs the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(description="Figures of the emulated machine.")
    parser.add_argument("--quick", action="store_true", help="one round, for a first look")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how many rounds [{ROUNDS}]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--resident", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.resident is not None:
        print_resident(options.resident)
        return 0
    console = Console()
    try:
        with console.status("") as status:
            found = measure(rounds=options.rounds, quick=options.quick, say=status.update)
    except Unmeasured as error:
        console.print(f"stopped: {error}", style="red", markup=False)
        return 1
    figures, missing = found
    console.print(draw(figures, missing))
    if options.json:
        result = {
            "machine": {"cpus": os.cpu_count(), "system": platform.platform()},
            "python": platform.python_version(),
            "figures": as_objects(figures),
            "missing": missing,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
