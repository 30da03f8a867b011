"""Attacks the product with hostile input: `make fuzz`, or one saved input again.

    fuzz/hunt.py [--target NAME]... [--engine auto|plain|guided] [--runs N | --minutes M]
                 [--processes P] [--seed S] [--json FILE] [--found FOLDER]
    fuzz/hunt.py --target NAME --input FILE

Each target is attacked in turn, by P processes at a time with a seed each; with `--minutes` the
time is shared among the targets. It ends with a line for each target: inputs tried, how many at
least were different, inputs a second, branches seen, finds. A find is saved, and the one command
that repeats it is printed.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "fuzz"), str(ROOT / "tests")]

from hostile import campaign, worker  # noqa: E402

if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        sys.exit(worker.main(sys.argv[2:]))
    sys.exit(campaign.main(sys.argv[1:]))
