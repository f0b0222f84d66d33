"""The other processes, as the gateway sees them."""
