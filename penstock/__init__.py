"""The command line: `penstock serve` starts the server on one machine; others talk to it."""
