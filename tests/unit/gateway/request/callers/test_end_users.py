"""For whom a request is: one name, from one header or the first field that has one."""

import hashlib
from collections.abc import Callable

import pytest

from gateway.errors import InvalidRequestError
from gateway.request.callers.caller import (
    MAX_CHARS,
    bounded_name,
    end_user_of,
    named_end_user,
)


def headers(**values: list[str]) -> Callable[[str], list[str]]:
    return lambda name: values.get(name, [])


def test_the_first_header_that_is_there_names_the_end_user() -> None:
    given = headers(second=["anna"], third=["bert"])
    assert end_user_of(given, ["first", "second", "third"]) == "anna"
    assert end_user_of(given, ["third", "second"]) == "bert"


def test_nobody_is_named_without_a_header_or_with_an_empty_one() -> None:
    assert end_user_of(headers(), ["user"]) == ""
    assert end_user_of(headers(user=["anna"]), []) == ""
    assert end_user_of(headers(user=["", "  "], next=["anna"]), ["user", "next"]) == "anna"


def test_a_header_that_says_one_name_twice_names_it_and_two_names_are_refused() -> None:
    assert end_user_of(headers(user=["anna", " anna "]), ["user"]) == "anna"
    with pytest.raises(InvalidRequestError, match=r"The header user names several end users"):
        end_user_of(headers(user=["anna", "bert"]), ["user"])


def test_a_header_that_contradicts_itself_is_refused_before_a_later_one_counts() -> None:
    with pytest.raises(InvalidRequestError):
        end_user_of(headers(user=["anna", "bert"], next=["carl"]), ["user", "next"])


def test_the_first_field_of_a_body_that_is_a_text_names_the_end_user() -> None:
    assert named_end_user(None, 7, "", "  ", " anna ", "bert") == "anna"
    assert named_end_user(None, ["anna"], {"user": "anna"}) == ""
    assert named_end_user() == ""


def test_a_name_is_kept_up_to_its_bound_and_told_by_its_digest_beyond() -> None:
    longest = "n" * MAX_CHARS
    assert bounded_name(longest) == longest
    longer = longest + "n"
    assert bounded_name(longer) == f"sha256:{hashlib.sha256(longer.encode()).hexdigest()}"
    assert bounded_name(longer) != bounded_name(longer + "n")
    assert end_user_of(headers(user=[longer]), ["user"]) == bounded_name(longer)
    assert named_end_user(longer) == bounded_name(longer)


def test_a_long_name_of_half_a_surrogate_pair_has_a_digest_as_well() -> None:
    assert bounded_name("\ud800" * (MAX_CHARS + 1)).startswith("sha256:")


def test_a_name_beyond_ascii_is_the_same_end_user_in_a_header_and_in_a_body() -> None:
    """Headers are bytes, which the server reads as ISO 8859-1 whatever a client meant."""
    for name in ("Ünal", "王芳", "😀"):
        as_read = name.encode().decode("latin-1")
        assert end_user_of(headers(user=[as_read]), ["user"]) == named_end_user(name) == name
    assert end_user_of(headers(user=["Ünal"]), ["user"]) == "Ünal"  # of a client that means it so
