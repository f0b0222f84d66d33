"""Which engine takes a request, and when: admission, the fair queue, slots, routing, quarantine.

Pure policy over the engines' reported loads; everything here is told the time and does no I/O.
Start at `admission.py`. Knows neither HTTP, sockets nor what a request is for.
Others use `Admission`, `PrefixRouter`, `Quarantine`, and give each `Slot` back.
May import `gateway.errors`.
"""
