"""Puts the questions to a real Xen: `python -m kernels.probe.record FOLDER` in `tests/`, twice.

The first time it fills FOLDER with kernels, scripts and `run.sh`, which domain 0 of a freshly
booted Xen runs there as root: it creates a domain for each script, one after the other, and keeps
what their consoles said (Xen's own `xenconsoled --log=guest` writes it). The second time,
FOLDER/log being there, that is kept as the answers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from kernels.probe.answers import write_answers
from kernels.probe.probe_kernel import probe_kernel
from kernels.probe.topics import TOPICS, domid, script

_RUN = """#!/bin/sh
mkdir -p log
while read -r name bits; do
  printf 'name="%s"\\ntype="pvh"\\nkernel="kernel-%s"\\nramdisk="%s"\\nmemory=32\\nvcpus=1\\n' \\
    "$name" "$bits" "$name.script" > domain.cfg
  printf 'on_crash="destroy"\\non_watchdog="destroy"\\n' >> domain.cfg
  xl create domain.cfg
  while xl domid "$name" > /dev/null 2>&1; do sleep 0.2; done
  cp "/var/log/xen/guest-$name.log" log/
done < order
"""


def write_scripts(folder: Path) -> None:
    """All that domain 0 needs."""
    for bits in (64, 32):
        (folder / f"kernel-{bits}").write_bytes(probe_kernel(bits))
    order = sorted((domid(topic, bits), topic, bits) for topic in TOPICS for bits in (64, 32))
    for _, topic, bits in order:
        (folder / f"{topic}.{bits}.script").write_bytes(script(topic, bits).encode())
    lines = (f"{topic}.{bits} {bits}\n" for _, topic, bits in order)
    (folder / "order").write_text("".join(lines))
    (folder / "run.sh").write_text(_RUN)


def read_consoles(folder: Path) -> None:
    """Keeps what was answered."""
    for topic in TOPICS:
        scripts = {bits: script(topic, bits) for bits in (64, 32)}
        told = {}
        for bits, asked in scripts.items():
            log = folder / "log" / f"guest-{topic}.{bits}.log"
            told[bits] = asked.answers(log.read_text(errors="replace"))
        write_answers(topic, scripts, told)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (read_consoles if (place / "log").exists() else write_scripts)(place)
