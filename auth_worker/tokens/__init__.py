"""Bearer tokens (JSON Web Tokens): who issues them, how they are verified, whom they make.

`verifier.py` is the only place that uses PyJWT, `key_source.py` has the issuer's keys,
`token_rules.py` says what its claims mean here.
Others use `TokenChecker`, `KeySource` and `TokenRules`.
May import `auth_worker.principals`, `auth_worker.outbound`, `auth_worker.clock` and
`auth_worker.errors`.
"""
