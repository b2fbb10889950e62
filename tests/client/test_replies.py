"""What a refusal says, whoever words it, and what an answer must be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import client
from client import BadReply, ClientError, NotReachable, NotReady, Refused
from client.replies import LONGEST, Reply, reason


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"code": 422, "type": "TooLong", "message": "cut it"}}', ("TooLong", "cut it")),  # ours
        (b'{"error": {"code": null, "type": null, "message": "cut it"}}', ("", "cut it")),  # OpenAI's
        (b'{"code": 404, "type": "ModelNotFoundException", "message": "m"}', ("ModelNotFoundException", "m")),
        (b'{"error": "no such model"}', ("", "no such model")),  # KServe's
        (b'{"status": "Unhealthy"}', ("", "Unhealthy")),  # TorchServe's /ping
        (b"plain \n words", ("", "plain words")),
        (b"", ("", "")),
        (b"\xff", ("", "\ufffd")),
        (b'["odd"]', ("", '["odd"]')),
        (b'{"message": 3}', ("", '{"message": 3}')),
    ],
)
def test_reason_reads_each_wording(body: bytes, expected: tuple[str, str]) -> None:
    assert reason(body) == expected


@given(st.binary() | st.recursive(st.none() | st.text(), lambda inner: st.dictionaries(st.text(), inner)))
def test_reason_reads_anything(body: object) -> None:
    kind, message = reason(body if isinstance(body, bytes) else json.dumps(body).encode())
    assert isinstance(kind, str) and isinstance(message, str)


def test_a_refusal_says_who_answered_what() -> None:
    body = b'{"code": 405, "type": "MethodNotAllowedException", "message": "not allowed"}'
    refused = Reply("http://h/models", 405, "Method Not Allowed", body).refusal()
    assert str(refused) == (
        "http://h/models answered 405 MethodNotAllowedException: not allowed "
        "(the server's model API is off: enable_model_api=true turns it on)"
    )


def test_a_refusal_without_words_has_https_phrase_and_a_long_one_is_cut() -> None:
    assert str(Reply("http://h/x", 502, "Bad Gateway", b"").refusal()) == "http://h/x answered 502 Bad Gateway"
    assert len(str(Reply("http://h/x", 502, "Bad Gateway", b"x" * 10_000).refusal())) < LONGEST + 100


@pytest.mark.parametrize("body", [b"", b"words", b"\xff\xfe", b"{"])
def test_no_json_is_a_bad_reply(body: bytes) -> None:
    with pytest.raises(BadReply, match="http://h/x answered no JSON"):
        Reply("http://h/x", 200, "OK", body).json()


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"models": 1}', b"null"])
def test_a_missing_field_is_a_bad_reply(body: bytes) -> None:
    with pytest.raises(BadReply, match="without 'models'"):
        Reply("http://h/x", 200, "OK", body).field("models", list)


def test_the_error_tree_is_the_one_that_is_drawn() -> None:
    for error in (NotReachable, Refused, NotReady, BadReply):
        assert error.__bases__ == (ClientError,)
        assert f"── {error.__name__} " in str(client.errors.__doc__)
    assert ClientError.__subclasses__() == [NotReachable, Refused, NotReady, BadReply]
