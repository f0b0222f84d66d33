"""Which bearer tokens open something, and for whom."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from auth_worker.errors import TokenRefusedError, UnknownSigningKeyError
from auth_worker.tokens.key_set import KeySet, read_key_set
from auth_worker.tokens.token_rules import TokenRules
from auth_worker.tokens.verifier import TokenVerifier, claim_of, principal_id
from tests.fakes.auth_parts import START_S
from tests.fakes.http_target import HttpTarget
from tests.fakes.token_issuer import (
    AUDIENCE,
    TokenIssuer,
    ec_key,
    ed_key,
    public_jwk,
    rsa_key,
)

SECRET = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
ISSUER = TokenIssuer(HttpTarget(url="https://issuer.example"))


def rules(**fields: Any) -> TokenRules:
    return TokenRules(issuer=ISSUER.issuer, audience=(AUDIENCE, "other"), **fields)


def key_set(*keys: dict[str, Any]) -> KeySet:
    return read_key_set(json.dumps({"keys": keys or ISSUER.keys}).encode())


def token(**fields: Any) -> str:
    return ISSUER.token(now_s=START_S, **fields)


def refusal(text: str, keys: KeySet | None = None, **fields: Any) -> str:
    with pytest.raises(TokenRefusedError) as info:
        TokenVerifier(rules(**fields)).verify(text, keys or key_set(), START_S)
    return info.value.message


def b64(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_a_good_token_is_whoever_it_names_until_it_expires() -> None:
    text = token()
    principal = TokenVerifier(rules()).verify(text, key_set(), START_S)
    assert principal.key_id == principal_id(ISSUER.issuer, "ada")
    assert principal.key_id.startswith("token_")
    assert "ada" not in principal.key_id
    assert principal.digest == hashlib.sha256(text.encode()).digest()
    assert (principal.role, principal.expires_at) == ("user", int(START_S) + 600)
    assert principal.is_active(START_S + 599)
    assert not principal.is_active(START_S + 600)
    assert principal.tenant_id == principal.key_id


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (rsa_key("one"), "RS256"),
        (rsa_key("one"), "RS512"),
        (rsa_key("one"), "PS256"),
        (ec_key("one"), "ES256"),
        (ed_key("one"), "EdDSA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_public_keys_of_every_kind_verify(key: Any, algorithm: str) -> None:
    keys = key_set(public_jwk(key, "k"))
    text = token(key=key, algorithm=algorithm, kid="k")
    assert TokenVerifier(rules()).verify(text, keys, START_S).name == "ada"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"iss": "https://other.example"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"aud": "somebody-else"}, "another service"),
        ({"aud": ["a", "b"]}, "another service"),
        ({"aud": None}, "another service"),
        ({"exp": None}, "`exp`"),
        ({"exp": int(START_S)}, "it has expired; use another."),
        ({"exp": int(START_S) - 86_400}, "has expired"),
        ({"exp": True}, "`exp`"),
        ({"nbf": int(START_S) + 31}, "`nbf`"),
        ({"iat": int(START_S) + 3600}, "`iat`"),
        ({"sub": None}, "`sub`"),
        ({"sub": ""}, "`sub`"),
        ({"sub": "x" * 256}, "`sub`"),
        ({"headers": {"typ": "logout+jwt"}}, "`typ`"),
        ({"headers": {"crit": ["x"], "x": 1}}, "not accepted"),
    ],
)
def test_tokens_that_are_not_for_us_or_not_good_now_are_refused(
    fields: dict[str, Any], why: str
) -> None:
    assert why in refusal(token(**fields))


@pytest.mark.parametrize(
    "fields", [{"aud": ["x", AUDIENCE]}, {"nbf": int(START_S) + 29}, {"aud": "other"}]
)
def test_one_audience_of_several_is_enough_and_clocks_may_differ_a_little(
    fields: dict[str, Any],
) -> None:
    assert TokenVerifier(rules()).verify(token(**fields), key_set(), START_S).name == "ada"


def test_alg_none_opens_nothing_with_or_without_a_signature() -> None:
    claims = token().split(".")[1]
    for name in ("none", "None", "NONE", ""):
        header = b64({"alg": name, "typ": "JWT", "kid": "one"})
        for signature in ("", b64(b"x")):
            for secret in (None, SECRET):
                assert refusal(f"{header}.{claims}.{signature}", secret=secret)


def test_a_public_key_is_never_taken_for_a_shared_secret() -> None:
    """Key confusion: HS256 with the issuer's public key, in every form that anybody publishes."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = rsa_key("one").public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    head, claims = b64({"alg": "HS256", "kid": "one"}), token().split(".")[1]
    for secret in (pem, pem.strip(), der, json.dumps(ISSUER.keys[0]).encode(), b""):
        signature = hmac.digest(secret, f"{head}.{claims}".encode(), "sha256")
        assert "public key" in refusal(f"{head}.{claims}.{b64(signature)}")


def test_a_symmetric_key_in_a_key_set_verifies_nothing() -> None:
    octet = {"kty": "oct", "kid": "one", "k": b64(SECRET), "alg": "HS256"}
    keys = key_set(octet, ISSUER.keys[0])
    assert keys.num_unfit == 1
    assert "public key" in refusal(token(key=SECRET, algorithm="HS256"), keys)


def test_keys_that_come_with_the_token_are_not_looked_at() -> None:
    mine = rsa_key("attacker")
    for headers in (
        {"jwk": public_jwk(mine, "one")},
        {"jku": "https://attacker.example/keys"},
        {"x5u": "https://attacker.example/cert"},
    ):
        assert "signature" in refusal(token(key=mine, headers=headers))


def test_another_key_another_id_or_another_algorithm_than_the_keys_own_is_refused() -> None:
    assert "signature" in refusal(token(key=rsa_key("other")))
    with pytest.raises(UnknownSigningKeyError):
        TokenVerifier(rules()).verify(token(kid="two"), key_set(), START_S)
    bound = key_set(public_jwk(rsa_key("one"), "one", alg="RS512"))
    with pytest.raises(UnknownSigningKeyError):
        TokenVerifier(rules()).verify(token(), bound, START_S)
    for unfit in ({"use": "enc"}, {"key_ops": ["sign"]}):
        with pytest.raises(UnknownSigningKeyError):
            keys = key_set(public_jwk(rsa_key("one"), "one", **unfit))
            TokenVerifier(rules()).verify(token(), keys, START_S)


def test_short_rsa_keys_are_left_aside() -> None:
    assert key_set(public_jwk(rsa_key("short", 1024), "one")).keys == ()


def test_a_token_without_a_key_id_is_good_where_only_one_key_fits() -> None:
    text = _without_kid()
    assert TokenVerifier(rules()).verify(text, key_set(), START_S).name == "ada"
    two = key_set(ISSUER.keys[0], public_jwk(rsa_key("other"), "two"))
    with pytest.raises(UnknownSigningKeyError):
        TokenVerifier(rules()).verify(text, two, START_S)


def _without_kid() -> str:
    import jwt

    claims = json.loads(base64.urlsafe_b64decode(token().split(".")[1] + "=="))
    return jwt.encode(claims, rsa_key("one"), "RS256")


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_a_shared_secret_verifies_its_own_algorithms_and_no_others(algorithm: str) -> None:
    text = token(key=SECRET, algorithm=algorithm)
    assert TokenVerifier(rules(secret=SECRET)).verify(text, KeySet(), START_S).name == "ada"
    assert "signature" in refusal(text, secret=SECRET[::-1])
    assert "HS256" in refusal(token(), secret=SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "eyJ",
        "a.b.c",
        "eyJ..",
        "eyJhbGciOiJSUzI1NiJ9..",
        "x" * 20_000,
        "eyJhbGciOiJSUzI1NiJ9.é.x",
        b64([1]) + "." + b64({}) + ".x",
        b64({"alg": 5}) + "." + b64({}) + ".x",
        b64({"alg": "RS256", "kid": 7}) + "." + b64({}) + ".x",
        b64({"alg": "RS256", "typ": 7}) + "." + b64({}) + ".x",
        b64(b"[" * 5000) + "." + b64({}) + ".x",
    ],
)
def test_what_is_no_token_is_refused_and_nothing_else_happens(text: str) -> None:
    assert refusal(text)


def test_signed_text_that_is_no_object_is_refused() -> None:
    import jwt

    for payload in (b"[]", b"1", b"not json", b"[" * 5000):
        text = jwt.PyJWS().encode(payload, rsa_key("one"), "RS256", headers={"kid": "one"})
        assert "no JSON object" in refusal(text)


def test_a_claim_makes_the_role_and_the_first_rule_that_fits_counts() -> None:
    verifier = TokenVerifier(
        rules(
            roles=("groups=chiefs:admin", "realm.roles=watch:readonly", "groups=bots:service"),
            default_role="none",
        )
    )

    def role(**claims: Any) -> str:
        return verifier.verify(token(**claims), key_set(), START_S).role

    assert role(groups=["x", "chiefs", "bots"]) == "admin"
    assert role(groups="bots") == "service"
    assert role(realm={"roles": ["watch"]}) == "readonly"
    for claims in ({}, {"groups": "chiefs2"}, {"groups": {"chiefs": 1}}, {"groups": [["chiefs"]]}):
        with pytest.raises(TokenRefusedError, match="no role here"):
            role(**claims)


def test_scopes_of_a_token_narrow_its_role_and_a_token_without_them_may_do_nothing() -> None:
    verifier = TokenVerifier(rules(scopes_claim="scope"))

    def scopes(**claims: Any) -> frozenset[str]:
        return verifier.verify(token(**claims), key_set(), START_S).scopes

    assert scopes(scope="models.list openid admin.keys") == {"models.list"}
    assert scopes(scope=["chat.completions"]) == {"chat.completions"}
    assert scopes() == frozenset()
    assert scopes(scope=7) == frozenset()


def test_claims_may_name_a_user_and_a_team_and_nothing_but_ids() -> None:
    verifier = TokenVerifier(rules(user_claim="user", team_claim="org.team"))
    named = verifier.verify(token(user="user_1", org={"team": "team_1"}), key_set(), START_S)
    assert (named.user_id, named.team_id) == ("user_1", "team_1")
    alone = verifier.verify(token(user="user_1"), key_set(), START_S)
    assert (alone.user_id, alone.team_id) == ("user_1", "")
    with pytest.raises(TokenRefusedError, match="no claim user"):
        verifier.verify(token(), key_set(), START_S)  # it would escape its user's limits
    for wrong in (7, "", ["user_1"], "u" * 201):
        with pytest.raises(TokenRefusedError, match="claim user"):
            verifier.verify(token(user=wrong), key_set(), START_S)


def test_a_claim_is_found_by_its_name_or_by_a_path() -> None:
    claims = {"https://x.example/roles": 1, "a.b": 2, "a": {"b": 3, "c": {"d": 4}}}
    assert claim_of(claims, "https://x.example/roles") == 1
    assert claim_of(claims, "a.b") == 2
    assert claim_of(claims, "a.c.d") == 4
    assert claim_of(claims, "a.c.d.e") is None
    assert claim_of(claims, "z") is None
