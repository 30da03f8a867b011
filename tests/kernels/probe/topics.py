"""All that is asked, by topic."""

from __future__ import annotations

from kernels.probe import (
    topics_control,
    topics_events,
    topics_grants,
    topics_guest,
    topics_memory,
    topics_processor,
)
from kernels.probe.script import Script, Topic

_MODULES = (
    *(topics_control, topics_events, topics_grants, topics_guest, topics_memory),
    topics_processor,
)


def _topics() -> dict[str, Topic]:
    found = {}
    for module in _MODULES:
        for name, value in vars(module).items():
            if callable(value) and name[0] != "_" and value.__module__ == module.__name__:
                found[name] = value
    return found


TOPICS: dict[str, Topic] = _topics()


def domid(topic: str, bits: int) -> int:
    """Its domain's id: on a real Xen they are created one after the other."""
    order = sorted((name, width) for name in TOPICS for width in (32, 64))
    return order.index((topic, bits)) + 1


def script(topic: str, bits: int) -> Script:
    """The script of a topic, for a kernel of `bits`, in the domain that it was asked in."""
    made = Script(bits, domid(topic, bits))
    TOPICS[topic](made)
    return made
