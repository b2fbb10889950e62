"""The Open Inference Protocol over gRPC as its clients speak it, in front of a gateway's HTTP.

TorchServe has a gRPC service for it that no client of the protocol can use: its package is not the protocol's,
it drops the raw tensors that clients send, writes strings in quotes, has no error that does not fail a whole
batch, and knows nothing of a model's tensors. Here every call is the same call over HTTP, with tensors in binary,
and every status is the gRPC code that means it. `grpc:` of the gateway's configuration starts it; by itself it has
neither keys nor TLS nor limits, so it listens where only this machine can ask.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
import urllib3
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services

from client.replies import reason
from client.transport import CONNECT_TIMEOUT, segment
from serving.connections import UNIX, Exchange, connections, exchange
from serving.gateway.config import HEALTH_CALLS, Limits, is_loopback
from serving.open_inference_tensors import raw_tensors

HEADER = "Inference-Header-Content-Length"
MOST_BYTES = 1 << 26  # of an answer; TorchServe's own limit is below
PASSED_ON = ("authorization", "traceparent", "x-request-id", "x-sticky")  # metadata for the gateway: its headers
# HTTP's status -> gRPC's: TorchServe's as it has them (GRPCUtils.java), but for 422, which is the client's fault
# too; the gateway's own as gRPC's http-grpc-status-mapping.md has them.
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.UNAVAILABLE,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class OpenInference(services.GRPCInferenceServiceServicer):  # type: ignore[misc]  # it has no types
    """The service.

    Args:
        gateway: connections to it.
        timeout: the most seconds to wait for an answer.
    """

    def __init__(self, gateway: urllib3.HTTPConnectionPool, timeout: float) -> None:
        self.gateway = gateway
        self.timeout = timeout

    def ServerLive(self, request: Any, context: Any) -> Any:
        """Whether TorchServe goes on trying."""
        return messages.ServerLiveResponse(live=self._is("/v2/health/live", context))

    def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether every model has a worker that is ready."""
        return messages.ServerReadyResponse(ready=self._is("/v2/health/ready", context))

    def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether a model has a worker that is ready."""
        path = _path(request.name, request.version, context)
        return messages.ModelReadyResponse(ready=self._is(f"{path}/ready", context))

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        """What this is."""
        return messages.ServerMetadataResponse(**self._ask("GET", "/v2", context).json())

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        """A model's tensors."""
        return messages.ModelMetadataResponse(
            **self._ask("GET", _path(request.name, request.version, context), context).json()
        )

    def ModelInfer(self, request: Any, context: Any) -> Any:
        """One request to a model."""
        path = _path(request.model_name, request.model_version, context)
        try:
            body, length = write_request(request)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        headers = {HEADER: str(length), "content-type": "application/octet-stream"}
        answer = self._ask("POST", f"{path}/infer", context, body=body, headers=headers)
        return read_answer(answer.data, int(answer.headers.get(HEADER, len(answer.data))))

    def _is(self, path: str, context: Any) -> bool:
        return self._ask("GET", path, context, either=(200, 503)).status == 200

    def _ask(
        self,
        method: str,
        path: str,
        context: Any,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        either: Sequence[int] = (200,),
    ) -> urllib3.BaseHTTPResponse:
        """An answer with one of these statuses; any other ends the call."""
        told = {name: value for name, value in context.invocation_metadata() if name in PASSED_ON}
        timeout = urllib3.Timeout(connect=CONNECT_TIMEOUT, read=self.timeout)
        exchange.set(asked := Exchange())
        if not context.add_callback(asked.give_up):  # called when the call ends, whoever ends it
            asked.give_up()
        try:
            answer = self.gateway.urlopen(
                method, path, body, {**told, **(headers or {})}, retries=False, redirect=False, timeout=timeout
            )
        except urllib3.exceptions.ReadTimeoutError:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {self.timeout:g} s")
        except urllib3.exceptions.HTTPError:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway gave no answer")
        if answer.status not in either:
            _, said = reason(answer.data)
            _abort(context, answer.status, said or "the gateway refused the request")
        return answer


def write_request(request: Any) -> tuple[bytes, int]:
    """A ModelInferRequest as the binary tensor extension has it, and how much of it is JSON. Raises ValueError."""
    contents = raw_tensors(request)
    inputs = [
        {
            "name": one.name,
            "datatype": one.datatype,
            "shape": list(one.shape),
            "parameters": {"binary_data_size": len(content)},
        }
        for one, content in zip(request.inputs, contents, strict=True)
    ]
    document = {
        **({"id": request.id} if request.id else {}),
        "parameters": {**_parameters(request.parameters), "binary_data_output": True},
        "inputs": inputs,
        "outputs": [{"name": one.name, "parameters": _as_binary(one.parameters)} for one in request.outputs],
    }
    head = json.dumps(document).encode()
    return b"".join([head, *contents]), len(head)


def read_answer(body: bytes, length: int) -> Any:
    """The ModelInferResponse that such an answer comes to, its tensors raw."""
    told, rest = json.loads(body[:length]), body[length:]
    answer = messages.ModelInferResponse(
        id=told.get("id", ""), model_name=told["model_name"], model_version=told["model_version"]
    )
    for tensor in told["outputs"]:
        answer.outputs.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        size = tensor["parameters"]["binary_data_size"]
        answer.raw_output_contents.append(rest[:size])
        rest = rest[size:]
    return answer


def _parameters(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
        for name, value in found.items()
    }


def _as_binary(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """An output's parameters, whatever they say of HTTP's forms: over gRPC every tensor is raw."""
    return {**_parameters(parameters), "binary_data": True}


def _path(name: str, version: str, context: Any) -> str:
    try:
        path = f"/v2/models/{segment('name', name)}"
        return f"{path}/versions/{segment('version', version)}" if version else path
    except ValueError as error:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise  # abort does


def _abort(context: Any, status: int, message: str) -> NoReturn:
    other = grpc.StatusCode.INVALID_ARGUMENT if status < 500 else grpc.StatusCode.INTERNAL
    context.abort(CODES.get(status, other), message)
    raise AssertionError  # abort raises


def start(service: OpenInference, address: str, threads: int, body_bytes: int) -> Any:
    """A gRPC server that listens, with threads of its own. Raises RuntimeError where the address cannot be used.

    What is over the gateway's limit gets its 413. Only what is far over it is refused here, in the middle of being
    sent: HAProxy makes a RST_STREAM of that, and clients CANCELLED in place of RESOURCE_EXHAUSTED.
    """
    options = [
        ("grpc.max_receive_message_length", 2 * body_bytes),
        ("grpc.max_send_message_length", MOST_BYTES),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.server(ThreadPoolExecutor(threads), options=options)
    services.add_GRPCInferenceServiceServicer_to_server(service, server)
    server.add_insecure_port(address)
    server.start()
    return server


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM; 0 after an orderly stop, else 1."""
    flags = read_arguments(arguments)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    service = OpenInference(flags.gateway, flags.timeout)
    servers = []
    for name, threads in (("address", flags.threads), ("health_address", HEALTH_CALLS)):
        if address := getattr(flags, name):
            try:
                servers.append(start(service, address, threads, flags.body_bytes))
            except RuntimeError:
                print(f"error: --{name.replace('_', '-')}: {address} cannot be used", file=sys.stderr)
                return 1
    print(f"Open Inference Protocol on {flags.address}", file=sys.stderr, flush=True)
    stop.wait()
    for ended in [server.stop(grace=flags.timeout) for server in servers]:
        ended.wait()
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with `gateway` as connections to it."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.open_inference", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--address",
        default="127.0.0.1:8001",
        metavar="HOST:PORT",
        help="where to listen: a loopback address, or unix:PATH (default: %(default)s)",
    )
    parser.add_argument(
        "--health-address",
        metavar="HOST:PORT",
        help="another such address, whose calls wait for none of the first one's (default: none)",
    )
    parser.add_argument(
        "--gateway",
        default="http://127.0.0.1:8000",
        metavar="URL",
        help="the gateway's HTTP, or unix:PATH (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=64, metavar="N", help="calls at once (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds to wait for an answer (default: %(default)s)",
    )
    parser.add_argument(
        "--body-bytes",
        type=int,
        default=Limits().body_bytes,
        metavar="N",
        help="the gateway's limits.body_bytes (default: %(default)s)",
    )
    flags = parser.parse_args(arguments)
    for name in ("threads", "timeout", "body_bytes"):
        if getattr(flags, name) <= 0:
            parser.error(f"--{name.replace('_', '-')}: expected a number above 0")
    for name in ("address", "health_address"):
        address = getattr(flags, name)
        if address and not (address.startswith(UNIX) or is_loopback(address)):
            parser.error(
                f"--{name.replace('_', '-')}: {address}: expected a loopback address, for it has no keys; "
                "a public one is `grpc` of the gateway's configuration (docker/gateway/README.md)"
            )
    try:
        flags.gateway = connections(flags.gateway, flags.threads + HEALTH_CALLS)
    except ValueError as error:
        parser.error(f"--gateway: {error}")
    return flags


if __name__ == "__main__":
    sys.exit(main())
