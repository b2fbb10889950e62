"""HAProxy as the template tells it, in front of what answers like TorchServe: limits, headers, log, maps."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import requests
import tritonclient.http as triton
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services
from tritonclient.utils import InferenceServerException

from serving.gateway import haproxy, keys, render
from serving.ports import free_ports
from tests.support.behind import front
from tests.support.raw import raw, status_of

ROOT = Path(__file__).resolve().parent.parent.parent
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def plain():
    """A gateway without keys, with all that it may have beside."""
    told = {
        "administration": True,
        "models": {"tiny": {"canary": {"version": "2.0", "weight": 0}}},
        "limits": {"request_seconds": 1},
    }
    with front(told) as running:
        yield running


def wait_for(holds, seconds=10):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- what is no request


CLOSE = b"Host: a\r\nConnection: close\r\n"
BODY = b"Content-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /v2/models/tiny HTTP/1.1\r\n" + CLOSE + BODY, 400),
        (b"DELETE /models/tiny HTTP/1.1\r\n" + CLOSE + BODY, 400),
        (b"HEAD /health HTTP/1.1\r\n" + CLOSE + BODY, 400),
        (b"GET /models HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 400),
        (b"GET /models HTTP/1.1\r\n" + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /v2/models/tiny/ready HTTP/1.1\r\n" + CLOSE + b"Content-Length: 0\r\n\r\n", 200),
        (b"POST /predict HTTP/1.1\r\n" + CLOSE + b"X: a\r\n b\r\n" + BODY, 200),  # obs-fold: one line behind it
        (b"POST /predict HTTP/1.1\nHost: a\nConnection: close\nContent-Length: 2\n\n{}", 200),  # RFC 9112, 2.2
        (b"POST http://a/predict HTTP/1.1\r\n" + CLOSE + BODY, 200),
        (b"POST http://b/predict HTTP/1.1\r\n" + CLOSE + BODY, 400),
        (b"POST http://a/models/tiny/../x HTTP/1.1\r\n" + CLOSE + BODY, 404),
        (b"OPTIONS * HTTP/1.1\r\n" + CLOSE + b"\r\n", 404),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 404),
        (b"TRACE /predict HTTP/1.1\r\n" + CLOSE + b"\r\n", 405),
        (b"POST /predictions%5ctiny HTTP/1.1\r\n" + CLOSE + BODY, 404),
        (b"POST /predictions\\tiny HTTP/1.1\r\n" + CLOSE + BODY, 404),
        (b"GET /models/tiny?customized=true HTTP/1.1\r\n" + CLOSE + b"\r\n", 400),
        (b"POST /predict HTTP/1.1\r\n" + CLOSE + b"A: " + b"a" * 10_000 + b"\r\n" + BODY, 431),
        (b"POST /predict HTTP/1.1\r\n" + CLOSE + b"A: " + b"a" * 7_500 + b"\r\n" + BODY, 200),
    ],
)
def test_odd_requests(plain, request_, status):
    before = len(plain.behind["local"].seen)
    answer = raw(plain.port, request_)
    assert status_of(answer) == status and answer.count(b"HTTP/1.1 ") == 1
    seen = plain.behind["local"].seen[before:]
    predicts = status == 200 and request_.startswith(b"POST")
    assert [one.path for one in seen] == ["/predictions/tiny/1.0"] * predicts
    assert not any("\n" in value or one.body != b"{}" for one in seen for value in one.headers.values())


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/", "GET, HEAD, POST"),
        ("DELETE", "/health", "GET, HEAD"),
        ("GET", "/predict", "POST"),
        ("PUT", "/models/tiny", "GET, DELETE"),
        ("PUT", "/predictions/tiny/1.0/v1/models", "GET, POST"),
    ],
)
def test_allow_names_every_method_of_a_path(plain, method, path, allowed):
    refused = requests.request(method, plain.url + path, timeout=5)
    assert (refused.status_code, refused.headers["Allow"]) == (405, allowed)


def test_the_root_answers_as_readiness_does(plain):
    # kserve 0.21's InferenceRESTClient.is_server_live reads `status`, and takes nothing but `alive`.
    assert plain.get("/").json() == {"status": "alive", "ready": True}
    assert plain.post("/").status_code == 200


def test_a_version_has_a_readiness_of_its_own(plain):
    assert plain.get("/v2/models/tiny/versions/2.0/ready").json() == {"name": "tiny", "ready": True}
    assert plain.get("/v2/models/tiny/versions/3.0/ready").status_code == 404


def test_no_model_is_ready_before_all_are(plain):
    paths = ("/", "/health", "/v1/models/tiny", "/v2/models/tiny/ready", "/v2/models/tiny/versions/1.0/ready")
    assert [plain.get(path).status_code for path in paths] == [200] * 5
    try:
        plain.haproxy.tell_state("stopping")
        assert [plain.get(path).status_code for path in paths] == [503] * 5
    finally:
        plain.haproxy.tell_state("ready")


def test_a_load_needs_no_body(plain):
    head = b"POST /models/more/load?model_path=a.mar HTTP/1.1\r\n" + CLOSE
    assert status_of(raw(plain.port, head + b"\r\n")) == 200
    assert plain.behind["local"].seen[-1].path.startswith("/models?url=a.mar&model_name=more&")
    assert status_of(raw(plain.port, head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")) == 411


# -- time


def test_slow_headers_and_slow_bodies(plain):
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\n"
    assert status_of(raw(plain.port, head, 5)) == 408
    assert status_of(raw(plain.port, head + b"Content-Length: 100\r\n\r\n{", 5)) == 408


def test_who_waits_for_a_slow_answer_is_not_cut_off(plain):
    """HAProxy's `timeout client` is for who does not read: here it is one second."""
    slow, big = {"wait": 2.5}, {"wait": 2.5, "text": "a" * 200_000}
    paused = {"pieces": 2, "pause": 1.5}
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda asked: plain.post(document=asked), (slow, big, paused)))
    assert [answer.status_code for answer in answers] == [200] * 3 and answers[2].text == "aa"


def test_who_stops_reading_is_cut_off(plain):
    body = b'{"pieces": 40, "size": 1000000}'
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", plain.port)) as connection:
        connection.sendall(head + body)
        before = len(plain.output())
        wait_for(lambda: '"end":"cD"' in plain.output()[before:], 5)


def test_who_has_gone_is_waited_for_no_longer(plain):
    body = b'{"wait": 20}'
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    before, asked = len(plain.output()), len(plain.behind["local"].seen)
    with socket.create_connection(("127.0.0.1", plain.port)) as connection:
        connection.sendall(head + body)
        wait_for(lambda: plain.behind["local"].seen[asked:])
    wait_for(lambda: '"end":"CH"' in plain.output()[before:], 5)


def test_a_long_body_has_the_models_time_between_two_pieces(tmp_path):
    with front({"models": {"tiny": {"seconds": 1}}}) as running:
        head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n"
        assert status_of(raw(running.port, head + b"{" * 120_000, 5)) == 504


# -- limits


def test_silent_connections_of_an_address_are_bound():
    with front({"limits": {"connections_per_address": 5}}) as running:

        def connected():
            return running.haproxy.ask("show table connections").partition("conn_cur=")[2]

        silent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(5)]
        wait_for(lambda: connected() == "5")
        with pytest.raises(requests.ConnectionError):
            running.get("/health")
        for connection in silent:
            connection.close()
        wait_for(lambda: connected() == "0")
        assert running.get("/health").status_code == 200


def test_a_host_has_a_network_of_addresses_and_one_limit():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 here")
    port = free_ports(1)
    limits = {"connections_per_address": 5, "requests_per_address": 2}
    with front({"listen": f"[::1]:{port}", "keys": None, "limits": limits}) as running:
        asked = [requests.post(f"http://[::1]:{port}/predict", json={}, timeout=5).status_code for _ in range(3)]
        assert asked == [200, 200, 429]
        for table in ("connections", "addresses"):
            assert " key=:: " in running.haproxy.ask(f"show table {table}")


@pytest.mark.parametrize("of_grpc", [False, True])
def test_clients_that_take_every_place_leave_what_is_not_theirs(of_grpc):
    told = {"limits": {"connections": 5}}
    with ExitStack() as ends:
        running, stub = (
            ends.enter_context(grpc_front(**told)) if of_grpc else (ends.enter_context(front(told)), None)
        )
        silent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(8)]
        with pytest.raises(requests.Timeout):
            requests.get(f"{running.url}/health", timeout=1)
        page = requests.get(f"http://127.0.0.1:{running.port + 1}/metrics", timeout=5)
        assert page.status_code == 200 and (not of_grpc or answers(stub))
        for connection in silent:
            connection.close()
        wait_for(lambda: running.get("/health").status_code == 200)


def test_requests_with_a_key_are_bound(tmp_path):
    made = {name: keys.new(name, "inference") for name in ("ann", "bob")}
    (tmp_path / "keys").write_text("".join(f"{line}\n" for _, line in made.values()))
    with front({"keys": str(tmp_path / "keys"), "limits": {"requests_per_key": 10}}) as running:

        def ask(name):
            headers = {"Authorization": f"Bearer {made[name][0]}"}
            return running.post(headers=headers)

        answers = [ask("ann") for _ in range(12)]
        assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 2
        assert answers[-1].headers["Retry-After"] == "10" and ask("bob").status_code == 200
        seen = running.behind["local"].seen
        assert len(seen) == 11 and not any(one.headers["Authorization"] for one in seen)


@pytest.mark.parametrize("queue", [0, 2])
def test_as_many_wait_as_the_queue_holds(queue):
    told = {"models": {"tiny": {"max_in_flight": 1}}, "limits": {"queue": queue, "queue_seconds": 30}}
    with front(told) as running, ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(running.post, document={"wait": 1})]
        wait_for(lambda: running.behind["local"].seen)
        asked += [threads.submit(running.post, document={"wait": 0.1}) for _ in range(6)]
        assert Counter(one.result().status_code for one in asked) == {200: 1 + queue, 503: 6 - queue}
        assert running.post().status_code == 200


def test_a_model_that_was_loaded_has_a_bound_too(monkeypatch):
    monkeypatch.setattr(render, "DEFAULT_IN_FLIGHT", 1)
    with front({"administration": True, "limits": {"queue": 1}}) as running, ThreadPoolExecutor(6) as threads:
        asked = [threads.submit(running.post, "/predictions/more", {"wait": 1}) for _ in range(6)]
        assert {running.get("/health").status_code for _ in range(20)} == {200}
        statuses = Counter(one.result().status_code for one in asked)
    assert set(statuses) == {200, 503} and statuses[503] >= 3
    refused = next(one.result() for one in asked if one.result().status_code == 503)
    assert refused.headers["Retry-After"] == "1"


def test_errors_are_strings_where_kserves_second_protocol_has_them(tmp_path):
    """The exception of tritonclient cannot be printed where it was given anything else."""
    token, line = keys.new("ann", "inference")
    (tmp_path / "keys").write_text(f"{line}\n")
    told = {"models": {"tiny": {"seconds": 1}}, "keys": str(tmp_path / "keys")}
    text = triton.InferInput("text", [1], "BYTES")
    text.set_data_from_numpy(np.array(["a"], object))
    with front(told) as running, triton.InferenceServerClient(f"127.0.0.1:{running.port}") as client:

        def asked(ask, says):
            with pytest.raises(InferenceServerException) as refused:
                ask({"Authorization": f"Bearer {token}"})
            assert str(refused.value) == says

        asked(lambda ann: client.get_server_metadata(), "[401] expected Authorization: Bearer and a key")
        asked(lambda ann: client.infer("other", [text], headers=ann), "[404] no such model is served")
        asked(lambda ann: client.get_model_config("tiny", headers=ann), "[404] there is no such path")
        running.behind["local"].wait = 2
        asked(lambda ann: client.infer("tiny", [text], headers=ann), "[504] the server did not answer in time")
        running.behind["local"].ready = False
        wait_for(lambda: running.get("/health").status_code == 503)
        asked(lambda ann: client.infer("tiny", [text], headers=ann), "[503] no server can take this now")
        refused = running.post(headers={"Authorization": f"Bearer {token}"})
        assert refused.json()["error"]["message"] == "no server can take this now"


# -- gRPC


@contextmanager
def grpc_front(**told):
    """A gateway with gRPC, and a stub for it."""
    address = f"127.0.0.1:{free_ports(1)}"
    with front({"grpc": address, **told}) as running, grpc.insecure_channel(address) as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        wait_for(lambda: answers(stub))
        yield running, stub


def answers(stub):
    """Whether its front is there."""
    try:
        return stub.ServerReady(messages.ServerReadyRequest(), timeout=5).ready
    except grpc.RpcError:
        return False


def test_calls_that_are_given_up_leave_their_places(monkeypatch):
    monkeypatch.setattr(render, "CALLS_IN_FLIGHT", 4)
    with grpc_front() as (running, stub):
        local = running.behind["local"]
        local.wait = 60
        for seen in (4, 8, 12):
            calls = [stub.ModelInfer.future(messages.ModelInferRequest(model_name="tiny")) for _ in range(4)]
            wait_for(lambda seen=seen: len(local.seen) == seen)
            asked = time.monotonic()
            assert stub.ServerReady(messages.ServerReadyRequest(), timeout=5).ready, "health does not wait"
            assert time.monotonic() - asked < 1
            for call in calls:
                call.cancel()


def test_what_is_not_heard_is_known():
    with front({}) as running:
        running.haproxy.process.send_signal(signal.SIGSTOP)
        assert not running.haproxy.tell_state("ready"), "or it would be told once, and never be ready"
        running.haproxy.process.send_signal(signal.SIGCONT)
        assert running.haproxy.tell_state("ready")


# -- the end


def test_what_is_accepted_has_its_time_after_the_notice():
    with front({"notice_seconds": 2}) as running, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(running.post, document={"wait": 3})
        wait_for(lambda: running.behind["local"].seen)
        assert 0 < running.haproxy.finish(2) < 2
        assert answer.result().status_code == 200


# -- canaries


def test_a_canary_gets_its_share(plain):
    plain.haproxy.ask(f"set map {plain.haproxy.folder}/canary.map m.tiny 10")
    with requests.Session() as session:
        told = [session.post(f"{plain.url}/predict", json={}).headers["x-model-version"] for _ in range(300)]
    plain.haproxy.ask(f"set map {plain.haproxy.folder}/canary.map m.tiny 0")
    assert 5 <= told.count("2.0") <= 60  # 30, give or take five sigma


def test_a_canary_on_another_server_that_dies():
    told = {"models": {"tiny": {"servers": ["local"], "canary": {"servers": ["second"], "weight": 100}}}}
    with front(told, ["second"]) as running:
        up = running.haproxy.folder / "haproxy.cfg"
        assert "backend m.tiny.canary" in up.read_text()
        wait_for(lambda: running.post().json()["server"] == "second")
        assert running.get("/health").status_code == 200
        running.behind["second"].ready = False
        wait_for(lambda: running.post().json()["server"] == "local")
        assert running.get("/health").status_code == 200
        running.behind["second"].ready = True
        wait_for(lambda: running.post().json()["server"] == "second")


def test_a_canary_stands_in_and_readiness_is_not_drawn_by_lot():
    told = {"models": {"tiny": {"servers": ["local"], "canary": {"servers": ["second"], "weight": 50}}}}
    readiness = ("/health", "/v2/models/tiny/ready", "/v1/models/tiny")
    with front(told, ["second"]) as running:

        def set_ready(local, second):
            running.behind["local"].ready, running.behind["second"].ready = local, second
            wanted = {name: "UP" if ready else "DOWN" for name, ready in (("local", local), ("second", second))}

            def seen():
                rows = running.haproxy._statistics()
                return {row["svname"]: row["status"] for row in rows if row["pxname"].startswith("m.tiny")}

            wait_for(lambda: {name: seen()[name] for name in wanted} == wanted)

        def statuses():
            return {running.get(path).status_code for path in readiness for _ in range(8)}

        set_ready(True, False)
        assert statuses() == {200} and {running.post().json()["server"] for _ in range(8)} == {"local"}
        set_ready(False, True)
        assert statuses() == {200} and {running.post().json()["server"] for _ in range(8)} == {"second"}
        assert running.get("/v2/models/tiny/versions/1.0/ready").status_code == 503
        running.haproxy.ask(f"set map {running.haproxy.folder}/canary.map m.tiny 0")
        assert statuses() == {503} and running.post().status_code == 503
        running.haproxy.ask(f"set map {running.haproxy.folder}/canary.map m.tiny 50")
        set_ready(False, False)
        assert statuses() == {503}


# -- what is seen


@pytest.mark.parametrize(
    ("headers", "kept"),
    [
        ({"traceparent": TRACE, "tracestate": "a=b"}, TRACE),
        ({"traceparent": TRACE.upper(), "tracestate": "a=b"}, None),
        ({"traceparent": f"{TRACE}, {TRACE}", "tracestate": "a=b"}, None),
        ({"traceparent": '00-"', "tracestate": "a=b"}, None),
        ({"tracestate": "a=b"}, None),
    ],
)
def test_a_trace_goes_on_if_it_is_one(plain, headers, kept):
    plain.post(headers={**headers, "Authorization": "Bearer secret", "Cookie": "a=b"})
    seen = plain.behind["local"].seen[-1].headers
    assert seen["traceparent"] == kept and seen["tracestate"] == ("a=b" if kept else None)
    assert seen["Authorization"] is None and seen["Cookie"] is None


def test_every_line_of_the_log_is_json_whatever_came(plain):
    before = len(plain.output().splitlines())
    hostile = [
        b"POST /predict HTTP/1.1\r\n" + CLOSE + b'traceparent: "\\\xff\x80\r\n' + BODY,
        b'POST /a"b\\c HTTP/1.1\r\n' + CLOSE + BODY,
        b"POST /" + b"\xff\xc3\x28\xf0\x9f\x98\x80" * 20 + b" HTTP/1.1\r\n" + CLOSE + BODY,
        b"POST /" + b'"' * 30_000 + b" HTTP/1.1\r\n" + CLOSE + BODY,
        b"POST /predict HTTP/1.1\r\n" + CLOSE + b"traceparent: " + b'"' * 6_000 + b"\r\n" + BODY,
        b'PO"T /predict HTTP/1.1\r\n' + CLOSE + BODY,
        b"P" * 60_000 + b" /predict HTTP/1.1\r\n" + CLOSE + BODY,
        b"\x16\x03\x01 nonsense\r\n\r\n",
        b"POST /predict HTTP/1.1\r\n" + CLOSE + b"X-Request-Id: " + b'"' * 200 + b"\r\n" + BODY,
    ]
    wanted = [status_of(raw(plain.port, one)) for one in hostile]
    wait_for(lambda: len(plain.output().splitlines()) >= before + len(hostile))
    lines = [json.loads(line) for line in plain.output().splitlines()[before:]]
    assert [line["status"] for line in lines] == wanted
    assert all(len(line["path"]) <= 512 and line["traceparent"] in ("", "-") for line in lines)


# -- keys, while it runs


def test_a_reload_that_failed_is_tried_again(tmp_path, monkeypatch, capfd):
    (made, line), (late, second) = (keys.new(name, "inference") for name in ("ann", "bob"))
    (tmp_path / "keys").write_text(f"{line}\n")
    with front({"keys": str(tmp_path / "keys")}) as running:

        def status(token):
            return running.post(headers={"Authorization": f"Bearer {token}"}).status_code

        monkeypatch.setattr(haproxy, "POLL_SECONDS", 0)
        real, refusals = haproxy.ask, []

        def ask(path, command):
            if command.startswith("add map") and not refusals:
                refusals.append(command)
                return "Out of memory error."
            return real(path, command)

        monkeypatch.setattr(haproxy, "ask", ask)
        (tmp_path / "keys").write_text(f"{line}\n{second}\n")
        running.haproxy.check()
        assert refusals and (status(made), status(late)) == (200, 401)
        running.haproxy.check()
        assert (status(made), status(late)) == (200, 200)
        said = capfd.readouterr().out
        assert "stay as they were for a second: HAProxy says Out of memory" in said and "read again" in said


def test_no_change_of_the_keys_is_missed(tmp_path, monkeypatch):
    (ann, line), (bob, second) = (keys.new(name, "inference") for name in ("ann", "bob"))
    file = tmp_path / "keys"
    file.write_text(f"{line}\n{second}\n")
    monkeypatch.setattr(haproxy, "POLL_SECONDS", 0)
    find = haproxy.find

    def revoke_and_find():
        file.write_text(f"{line}\n")
        return find()

    monkeypatch.setattr(haproxy, "find", revoke_and_find)
    with front({"keys": str(file)}) as running:

        def statuses():
            running.haproxy.check()
            told = ({"Authorization": f"Bearer {token}"} for token in (ann, bob))
            return [running.post(headers=headers).status_code for headers in told]

        assert statuses() == [200, 401], "changed after it was read"
        before = file.stat()
        file.write_text(f"{second}\n".ljust(before.st_size))
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert statuses() == [401, 200], "changed with the time of before, as `cp --preserve` does"


# -- TLS


@pytest.fixture(scope="module")
def pem(tmp_path_factory):
    """A file with key and certificate, for loopback."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", path, "-out", path.with_name("crt")]
    subprocess.run(made, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_name("crt").read_text())
    return path


def health(*arguments):
    command = [sys.executable, str(ROOT / "docker" / "health.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).returncode


def test_a_prediction_over_tls_and_the_health_check(pem):
    with front({"tls": str(pem)}) as running:
        assert running.post(verify=str(pem.with_name("crt"))).json()["server"] == "local"
        assert health(f"http://127.0.0.1:{running.port}/health") == 0
        curl = ["curl", "--silent", "--http2", "--cacert", pem.with_name("crt")]
        told = [*curl, "--json", "{}", "--write-out", " %{http_version}", f"{running.url}/predict"]
        answer = subprocess.run(told, capture_output=True, text=True, check=True).stdout
        assert '"server": "local"' in answer and answer.endswith(" 2")
        told = [*curl, "--request", "GET", "--upload-file", "-", f"{running.url}/v2/models/tiny"]
        answer = subprocess.run(told, input="{}", capture_output=True, text=True, check=False).stdout
        assert "this method takes no body" in answer  # HTTP/2 has no header for it
        running.haproxy.tell_state("stopping")
        assert health(f"http://127.0.0.1:{running.port}/health") == 1


def test_the_health_check_without_tls(plain, monkeypatch):
    monkeypatch.setenv("AIP_HTTP_PORT", "9")
    monkeypatch.setenv("PORT", str(plain.port))  # as serving/container.py has it
    assert health() == 0
    assert health(f"http://127.0.0.1:{plain.port}/health") == 0
    assert health(f"http://127.0.0.1:{plain.port}/absent") == 1
    assert health("http://127.0.0.1:9/health") == 1
