"""A hostile peer in a process of its own: floods a socket with random and damaged frames."""

import json
import random
import sys
from pathlib import Path

import zmq

GOLDEN_DIR = Path(__file__).parents[1] / "contract" / "golden"


# A gateway may end a worker's session with these, which a flood should not.
ENDING_TAGS = {"goodbye", "drain", "refused", "heartbeat"}


def make_messages(seed: int, num_messages: int = 2000) -> list[list[bytes]]:
    """Messages of one to three frames: random bytes, damaged golden frames, nested maps."""
    rng = random.Random(seed)
    golden = [
        bytes.fromhex(entry["frame"])
        for path in sorted(GOLDEN_DIR.glob("*.json"))
        for tag, entry in json.loads(path.read_text(encoding="utf-8")).items()
        if tag not in ENDING_TAGS
    ]
    messages = []
    for _ in range(num_messages):
        kind = rng.random()
        if kind < 0.5:
            frame = rng.randbytes(rng.randrange(200))
        elif kind < 0.9:
            damaged = bytearray(rng.choice(golden))
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            frame = bytes(damaged)
        else:
            frame = rng.choice([b"\x91", b"\x81\xa1a"]) * rng.randrange(1, 2000)
        messages.append([frame] * rng.choice([1, 1, 1, 1, 2, 3]))
    return messages


def main() -> int:
    """Arguments: `dial` or `bind`, address, number of messages, seed."""
    mode, address, count, seed = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    messages = make_messages(seed)
    context = zmq.Context()
    socket = context.socket(zmq.DEALER if mode == "dial" else zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 20_000)
    prefix: list[bytes] = []
    if mode == "dial":
        socket.connect(address)
    else:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.bind(address)
        prefix = [socket.recv_multipart()[0]]
    for number in range(count):
        socket.send_multipart([*prefix, *messages[number % len(messages)]])
    socket.close()
    context.term()
    return 0


if __name__ == "__main__":
    sys.exit(main())
