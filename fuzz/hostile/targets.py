"""All targets by name, and where each is defined; loaded one at a time, instrumented or not.

A target that is not listed is named by its module, which has it as `TARGET`.
"""

from __future__ import annotations

import importlib

from hostile import guided
from hostile.target import Target

TARGETS = {
    "module": "hostile.modules",
    "start-info": "hostile.startinfos",
    "kernel": "hostile.kernels",
    "image": "hostile.images",
    "show": "hostile.showing",
    "guest": "hostile.guests",
    "code": "hostile.guestcode",
    "xenstore-socket": "hostile.xssocket",
    "xenstore-ring": "hostile.xsring",
    "xenstore-stream": "hostile.xsstream",
    "xenstore-change": "hostile.xschange",
}


def load_target(name: str, *, instrumented: bool = False) -> Target:
    """The target; ImportError if there is none of that name."""
    where = TARGETS.get(name, name)
    if instrumented:
        module = guided.load_instrumented(where, itself=name not in TARGETS)
    else:
        module = importlib.import_module(where)
    target: Target = module.TARGET
    return target
