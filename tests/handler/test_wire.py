from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ts.context import RequestProcessor

from handler import errors, wire
from handler.errors import MAX_MESSAGE, BadRequest, HandlerError
from handler.wire import Message, Reply


class Context:
    """TorchServe's own request processors, without a worker around them."""

    def __init__(self, *headers):
        self.processors = [RequestProcessor(dict(header)) for header in headers]

    def get_all_request_header(self, index):
        return self.processors[index].get_request_properties()

    def get_response_headers(self, index):
        return self.processors[index].get_response_headers()

    def set_response_status(self, code, phrase, index):
        self.processors[index].report_status(code, phrase)

    def set_response_content_type(self, index, value):
        self.processors[index].add_response_property("content-type", value)

    def set_response_header(self, index, name, value):
        self.processors[index].add_response_property(name, value)


def read(row, **headers):
    [slot] = wire.read([row], Context({name.replace("_", "-"): value for name, value in headers.items()}))
    return slot


def test_a_body_with_its_type():
    assert read({"body": bytearray(b"{}")}, CoNTent_TyPe="application/json") == Message(b"{}", "application/json")


def test_grpc_sends_no_headers():
    assert read({"data": bytearray(b"{}")}, data={"content-type": ""}) == Message(b"{}", transport=wire.GRPC)


def test_a_form():
    form = "application/x-www-form-urlencoded"
    message = read({"text": bytearray(b"a"), "top_k": bytearray(b"1")}, content_type=form)
    assert message == Message(content_type=form, fields={"text": b"a", "top_k": b"1"})


def test_an_uploaded_file_has_a_type_of_its_own():
    row, part = {"data": bytearray(b"{}")}, {"content-type": "application/json"}
    assert read(row, content_type="multipart/form-data; boundary=x", data=part).content_type == "application/json"


def test_a_header_cannot_pass_for_a_part():
    row = {"data": bytearray(b"{}")}
    assert read(row, content_type="multipart/form-data", data="text/plain").content_type == ""


@pytest.mark.parametrize(
    ("value", "body"), [({"text": "é"}, '{"text":"é"}'), ("é", "é"), (None, "null"), ([], "[]")]
)
def test_what_torchserve_has_read_is_undone(value, body):
    assert read({"body": value}).body == body.encode()


@pytest.mark.parametrize("value", ["\ud800", {"text": "\ud800"}, {"text": 2**70}])
def test_what_cannot_be_undone(value):
    assert isinstance(read({"body": value}), BadRequest)


def test_an_answer_over_the_limit_becomes_its_own_413():
    context = Context({}, {}, {})
    bodies = wire.write([Reply(b"a" * 100), Reply(b"b" * 101), BadRequest("c")], context, 100)
    assert bodies[0] == b"a" * 100
    assert "101 bytes" in json.loads(bodies[1])["error"]["message"]
    assert [p.get_response_status_code() for p in context.processors] == [200, 413, 400]


def all_errors(root=HandlerError):
    return [root, *(error for child in root.__subclasses__() for error in all_errors(child))]


@pytest.mark.parametrize("error", all_errors())
@given(message=st.text(max_size=3000))
def test_an_error_is_small_and_ascii_json(error, message):
    reply = wire.error_reply(error(message))
    assert len(reply.body) < 4096 and len(error(message).args[0]) <= MAX_MESSAGE
    assert json.loads(reply.body)["error"]["code"] == reply.status == error.status
    assert reply.body.isascii()


def test_every_error_says_whose_fault_it_is():
    for error in all_errors():
        if issubclass(error, errors.ClientFault):
            assert 400 <= error.status < 500
        else:
            assert 500 <= error.status < 600
