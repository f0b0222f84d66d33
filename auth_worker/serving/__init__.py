"""What talks to gateways: the handler of commands, what is counted, and the clock that ticks.

May be touched when a message of the wire changes. May import every room below; only
`auth_worker.service`, which puts the process together, lies above.
"""
