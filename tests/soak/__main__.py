"""`python -m tests.soak`: a deployment under load and chaos for half an hour, and its report."""

import argparse
import asyncio
import shutil
import sys
import tempfile
from pathlib import Path

from tests.soak.run import SoakOptions, soak


def main() -> int:
    """Run with the options of the command line; the exit code tells whether all was clean."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="of chaos")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--parsers", type=int, default=2)
    parser.add_argument("--calm-requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="write the Markdown here, too")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="soak-"))
    options = SoakOptions(
        directory=directory,
        cache_dir=Path("~/.cache/penstock").expanduser(),
        chaos_s=args.minutes * 60,
        num_clients=args.clients,
        num_engines=args.engines,
        num_parsers=args.parsers,
        num_calm_requests=args.calm_requests,
        seed=args.seed,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    findings, page = asyncio.run(soak(options))
    print(page)
    if args.report:
        args.report.write_text(page, encoding="utf-8")
    if findings.is_clean:
        shutil.rmtree(directory, ignore_errors=True)
    else:
        print(f"not clean; logs are in {directory}", file=sys.stderr)
    return 0 if findings.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
