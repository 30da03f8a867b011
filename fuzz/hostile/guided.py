"""The engine with eyes: libFuzzer through atheris, which sees the branches an input takes.

Our own changes are its custom mutator, so that it keeps what reaches new code and changes that in
ways that know the format. It ends the process itself; counts are safe in the tally.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from pathlib import Path
from random import Random
from typing import Any

from hostile.tally import Tally
from hostile.target import Target

# Far above what one input needs, far below what would disturb others on the machine.
TIMEOUT_S = 60
RSS_LIMIT_MB = 2048


def can_guide() -> bool:
    """Whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def load_instrumented(module: str, *, itself: bool = False) -> Any:
    """A module of targets, with what it imports of xenlive made visible to the engine.

    `itself` makes the module's own branches visible, too.
    """
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["xenlive", *([module] if itself else [])]):
        return importlib.import_module(module)


def hunt_guided(
    target: Target,
    tally: Tally,
    folder: Path,
    *,
    seed: int,
    runs: int,
    seconds: float,
    corpus: Path,
) -> None:
    """Never comes back: the process ends with 0, or with another code after a find.

    The find lies in `folder`, named `find-…`; `corpus` grows by what reached new code.
    """
    atheris = importlib.import_module("atheris")
    seeds = folder / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (seeds / f"{number:04}").write_bytes(data)

    def check(data: bytes) -> None:
        began_ns = time.perf_counter_ns()
        word = target.check(data)
        tally.note(data, word, time.perf_counter_ns() - began_ns)

    def mutate(data: bytes, max_size: int, number: int) -> bytes:
        return target.mutate(data, Random(number))[:max_size]

    options = [
        f"-seed={seed % (1 << 32) or 1}",
        f"-artifact_prefix={folder}/find-",
        f"-max_len={target.max_bytes}",
        f"-timeout={TIMEOUT_S}",
        f"-report_slow_units={TIMEOUT_S}",  # else a busy machine makes finds
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        "-len_control=0",  # the mutator knows which lengths make sense
        "-mutate_depth=2",
    ]
    options += [f"-runs={runs}"] if runs else []
    options += [f"-max_total_time={max(int(seconds), 1)}"] if seconds else []
    atheris.Setup(["hunt", *options, str(corpus), str(seeds)], check, custom_mutator=mutate)
    atheris.Fuzz()
