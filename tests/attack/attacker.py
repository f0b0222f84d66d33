"""`python -m tests.attack.attacker`: one attack in a process of its own, with the least priority.

An attacker's machine is another one: what its client costs must not be taken for the server's.
"""

import asyncio
import json
import random
import sys
from typing import Any

from protocol.runtime.give_way import give_way
from tests.attack.catalogue import ATTACKS
from tests.attack.target import Attack, Outcome, Target

_NICENESS = 15
_GRACE_S = 150.0
"""For answers that an attack waits for when its time is up."""


async def attack_from_elsewhere(name: str, **target: Any) -> Outcome:
    """Run an attack in another process.

    Args:
        name: Of the attack.
        target: The fields of `Target`, with `seed` in the place of `rng`.

    Raises:
        RuntimeError: The attacker itself broke.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.attack.attacker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        order = json.dumps({"name": name, **target}).encode()
        output, errors = await process.communicate(order)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"the attacker {name} broke:\n{errors.decode(errors='replace')}")
    fields = json.loads(output)
    outcome = Outcome(faults=fields["faults"], notes=fields["notes"])
    outcome.counts.update(fields["counts"])
    return outcome


async def _bounded(attack: Attack, target: Target) -> None:
    try:
        async with asyncio.timeout(target.seconds + _GRACE_S):
            await attack.run(target)
    except TimeoutError:
        target.outcome.notes.append(f"cut off {_GRACE_S:g} s after its time")


def main() -> int:
    """Attack as standard input says, and write what happened to standard output."""
    give_way(_NICENESS)
    order = json.load(sys.stdin)
    name, seed = order.pop("name"), order.pop("seed")
    (attack,) = (one for one in ATTACKS if one.name == name)
    target = Target(rng=random.Random(seed), **order)
    asyncio.run(_bounded(attack, target))
    json.dump(vars(target.outcome), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
