"""`python -m tests.attack`: hostile clients at a deployment of this machine, and what they did to
it."""

import argparse
import asyncio
import sys
from pathlib import Path

from tests.attack.catalogue import ATTACKS
from tests.attack.report import render
from tests.attack.run import Options, run_attack


def main() -> int:
    """Run with the options of the command line; the exit code tells whether any did harm."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    names = [attack.name for attack in ATTACKS]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help="again and again"
    )
    parser.add_argument("--list", action="store_true", help="name the attacks and end")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack")
    parser.add_argument("--calm-seconds", type=float, default=10.0, help="measured before each")
    parser.add_argument("--settle-seconds", type=float, default=30.0, help="of patience after it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--stalls", action="store_true", help="tell what held up the gateway's event loop"
    )
    parser.add_argument("--report", type=Path, help="write the Markdown here, too")
    args = parser.parse_args()
    if args.list:
        for attack in ATTACKS:
            print(f"{attack.name:<20}{attack.summary}")
        return 0
    options = Options(
        cache_dir=Path("~/.cache/penstock").expanduser(),
        calm_s=args.calm_seconds,
        attack_s=args.seconds,
        settle_s=args.settle_seconds,
        seed=args.seed,
        has_stalls=args.stalls,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    chosen = [attack for attack in ATTACKS if not args.only or attack.name in args.only]
    findings = [asyncio.run(run_attack(attack, options)) for attack in chosen]
    page = render(findings, " ".join(["python -m tests.attack", *sys.argv[1:]]))
    print(page)
    if args.report:
        args.report.parent.mkdir(parents=True, exist_ok=True)
        args.report.write_text(page, encoding="utf-8")
    return 1 if any(finding.verdicts for finding in findings) else 0


if __name__ == "__main__":
    sys.exit(main())
