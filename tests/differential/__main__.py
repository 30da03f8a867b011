"""The long comparison: `python -m differential --peer c --seeds 1000`, from the `tests` folder.

With `--xen-tree DIR`, a checkout of Xen's development tree, its C daemon is built, and compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from differential.comparing import Finding, Outcome, compare, shrink
from differential.daemons import DaemonPeer, c_peer, ocaml_peer
from differential.known_c import C_4_17
from differential.known_newest import NEWEST
from differential.known_ocaml import OCAML_4_17
from differential.ours import OurPeer
from differential.playing import play
from differential.steps import Step, sequence
from peer.newest import NewestDaemon, build_newest

PEERS = {"c": c_peer, "ocaml": ocaml_peer}
#: Peers whose sequences are plain ones.
PLAIN = ("ocaml",)
KNOWN = {"c": C_4_17, "ocaml": OCAML_4_17}


def run(peer: str, steps: list[Step], folder: Path, build_folder: Path) -> Outcome:
    """Plays `steps` on ours and on `peer`, in a folder of its own in `folder`, and compares."""
    mine = play(OurPeer(), steps)
    other = play(PEERS[peer](folder / peer, build_folder), steps)
    return compare(steps, mine, other, KNOWN[peer])


def shorter(peer: str, steps: list[Step], finding: Finding, folder: Path) -> list[Step]:
    """The fewest steps that come to the same finding."""

    def fails(fewer: list[Step]) -> bool:
        again = run(peer, fewer, folder, folder).finding
        return again is not None and again.is_like(finding)

    return shrink(steps[: finding.index + 1], fails)


def add_newest(program: Path) -> None:
    """Has the daemon that was built among the peers."""

    def newest_peer(folder: Path, build_folder: Path) -> DaemonPeer:
        return DaemonPeer(NewestDaemon(folder, program, shim_folder=build_folder))

    PEERS["newest"] = newest_peer
    KNOWN["newest"] = NEWEST


def main() -> int:
    """Compares as many sequences as were asked for; 1 if there was a finding."""
    parser = argparse.ArgumentParser(prog="differential", description=__doc__)
    parser.add_argument("--peer", choices=[*PEERS], action="append")
    parser.add_argument("--xen-tree", type=Path, help="compare with its C daemon alone")
    parser.add_argument("--seeds", type=int, default=200, help="how many sequences a peer")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--length", type=int, default=300, help="steps in a sequence")
    parser.add_argument("--sockets-only", action="store_true")
    parser.add_argument("--most", type=int, default=5, help="stop after so many findings")
    options = parser.parse_args()
    findings = 0
    with tempfile.TemporaryDirectory(prefix="differential-") as name:
        folder = Path(name)
        peers = options.peer or [*PEERS]
        if options.xen_tree is not None:
            add_newest(build_newest(options.xen_tree, folder))
            peers = ["newest"]
        for peer in peers:
            met: Counter[str] = Counter()
            compared = 0
            for seed in range(options.first, options.first + options.seeds):
                steps = sequence(
                    seed, options.length, guests=not options.sockets_only, plain=peer in PLAIN
                )
                outcome = run(peer, steps, folder, folder)
                compared += outcome.compared
                met += outcome.met
                if outcome.finding is None:
                    continue
                findings += 1
                short = shorter(peer, steps, outcome.finding, folder)
                print(f"seed {seed} against {peer}, in short:")
                for step in short:
                    print(f"  {step}")
                print(outcome.finding, flush=True)
                if findings >= options.most:
                    return 1
            print(f"{peer}: {options.seeds} sequences, {compared} steps compared")
            for name, count in sorted(met.items()):
                print(f"  {count:6} times: {name}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
