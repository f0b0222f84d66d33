"""The command line: `penstock serve` starts the house on one machine; chat, keys and ping talk to it."""
