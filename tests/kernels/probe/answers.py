"""What a real Xen answered, as kept in `real_xen_4_17/`: one file a topic.

    # do_vcpu_op, xen/arch/x86/domain.c
    up = 0x0
    1: hole = ENOENT
    periodic 1 = EINVAL / 0x0            the second for a caller of 32 bits, where it differs

A line that only one of the two was asked has `-` for the other; what was not answered any more,
because the domain was gone, is `gone`.
"""

from __future__ import annotations

from pathlib import Path

from kernels.probe.script import Script

FOLDER = Path(__file__).parent / "real_xen_4_17"
GONE, NOT_ASKED = "gone", "-"
_BETWEEN = " / "


def read_answers(topic: str, bits: int) -> dict[str, str]:
    """Each question's answer, by its name, for a caller of `bits`."""
    found = {}
    for line in (FOLDER / f"{topic}.txt").read_text().splitlines():
        if not line or line.startswith("# "):
            continue
        name, _, told = line.rpartition(" = ")
        answers = told.split(_BETWEEN)
        answer = answers[-1] if bits == 32 else answers[0]
        if answer != NOT_ASKED:
            found[name] = answer
    return found


def write_answers(topic: str, scripts: dict[int, Script], told: dict[int, dict[str, str]]) -> None:
    """Keeps what was answered to a topic's scripts of 64 and 32 bits."""
    lines: list[str] = []
    source = ""
    order = {asked.name: asked for bits in (64, 32) for asked in scripts[bits].asked}
    for name, asked in order.items():
        if asked.source != source:
            source = asked.source
            lines += ["", f"# {source}"] if lines else [f"# {source}"]
        answers = [_answer(scripts[bits], told[bits], name) for bits in (64, 32)]
        same = answers[0] == answers[1]
        lines.append(f"{name} = {answers[0] if same else _BETWEEN.join(answers)}")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{topic}.txt").write_text("\n".join(lines) + "\n")


def _answer(script: Script, told: dict[str, str], name: str) -> str:
    if all(asked.name != name for asked in script.asked):
        return NOT_ASKED
    return told.get(name, GONE)
