"""Bearer tokens (JSON Web Tokens): who issues them, how they are verified, whom they make.

May be touched when another kind of token is accepted or claims mean something else. May import the
rooms of principals and outbound, errors and the clock; only here is PyJWT used.
"""
