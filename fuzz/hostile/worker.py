"""One process that attacks one target, until its runs or its time are over, or it finds something.

A find is a file `find-…` in the worker's folder, a traceback in its output, and an exit code other
than 0.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import resource
import tempfile
import traceback
from pathlib import Path

from hostile import guided
from hostile.plain import Found, hunt_plain
from hostile.tally import Tally
from hostile.targets import load_target

MEMORY_LIMIT_BYTES = 4 << 30
STUCK_S = 120
FOUND_CODE = 77  # libFuzzer's


def main(arguments: list[str]) -> int:
    """Runs the worker; see hunt.py, which starts it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--engine", choices=("plain", "guided"), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0)
    options = parser.parse_args(arguments)
    # A size that was believed is a MemoryError here, and so a find.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    tempfile.tempdir = str(options.folder)
    target = load_target(options.target, instrumented=options.engine == "guided")
    tally = Tally(options.folder)
    if options.engine == "guided":
        guided.hunt_guided(
            target,
            tally,
            options.folder,
            seed=options.seed,
            runs=options.runs,
            seconds=options.seconds,
            corpus=options.corpus,
        )
    if options.seconds:
        faulthandler.dump_traceback_later(options.seconds + STUCK_S, exit=True)
    try:
        hunt_plain(target, tally, seed=options.seed, runs=options.runs, seconds=options.seconds)
    except Found as found:
        name = "find-" + hashlib.sha1(found.data).hexdigest()
        (options.folder / name).write_bytes(found.data)
        traceback.print_exc()
        return FOUND_CODE
    return 0
