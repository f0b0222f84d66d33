"""The command line: `penstock serve` starts the server on one machine; chat, keys and ping talk to it."""
