"""``python -m benchmarks [ID ...]``: measure rows, keep the others, and write the book's page about them."""

import argparse
import os
import sys
from collections.abc import Sequence

from benchmarks import (
    datamodels,
    harness,
    ihvp,
    mog,
    page,
    sgns,
    sgns_lissa,
    sgns_memory,
    sparse,
    tracin,
    tracin_memory,
    tracin_pairs,
    tuning,
    weat,
)
from clif_kit.watchdog import PARENT_PID, watch_parent

MODULES = (
    mog, ihvp, sgns, sgns_lissa, sgns_memory, weat, tracin, tracin_pairs, tracin_memory, tuning, datamodels, sparse,
)  # fmt: skip
ROWS = {row.id: row for module in MODULES for row in module.ROWS}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line: 0 when done, 1 when an answer differs or a rival cannot run, 2 for an unknown row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours and its rivals, side by side.")
    parser.add_argument("ids", nargs="*", metavar="ID", help="rows to measure; all by default")
    parser.add_argument("--list", action="store_true", help="only say which rows there are")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(f"{row.id:<18} {row.title}; {row.n}; against {row.rival}" for row in ROWS.values()))
        return 0
    unknown = [name for name in args.ids if name not in ROWS]
    if unknown:
        print(f"no row {', '.join(map(repr, unknown))}; there are: {', '.join(ROWS)}", file=sys.stderr)
        return 2
    if PARENT_PID in os.environ:
        watch_parent()
    good = harness.run([ROWS[name] for name in args.ids or ROWS], lambda text: print(text, flush=True))
    page.write()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
