"""The Open Inference Protocol over gRPC as its clients speak it, in front of TorchServe's HTTP.

TorchServe has a gRPC service for it that no client of the protocol can use: its package is not the protocol's,
it drops the raw tensors that clients send, writes strings in quotes, has no error that does not fail a whole
batch, and knows nothing of a model's tensors. Here every call is one over HTTP, with tensors in binary, and
every status is the gRPC code that means it.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
import requests
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services

from client import ClientError, ManagementClient, Refused
from client.replies import reason
from client.transport import segment
from serving.open_inference_tensors import raw_tensors

HEADER = "Inference-Header-Content-Length"
MOST_BYTES = 1 << 26  # of a message; TorchServe's own limits are below
# HTTP's status -> gRPC's, as TorchServe has them (GRPCUtils.java), but for 422, which is the client's fault too.
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}


class OpenInference(services.GRPCInferenceServiceServicer):  # type: ignore[misc]  # it has no types
    """The service.

    Args:
        inference: URL of TorchServe's inference port.
        management: URL of its management port, which knows what is ready.
        timeout: the most seconds to wait for an answer.
    """

    def __init__(self, inference: str, management: str, timeout: float) -> None:
        self.inference = inference.rstrip("/")
        self.management = management
        self.timeout = timeout
        self._own = threading.local()  # a session for each thread: requests has no lock of its own

    def ServerLive(self, request: Any, context: Any) -> Any:
        """Whether TorchServe answers at all."""
        with self._managing(context) as models:
            models.names()
            return messages.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether every model has a worker that is ready."""
        with self._managing(context) as models:
            return messages.ServerReadyResponse(ready=all(model.ready for model in models.models()))

    def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether a model has a worker that is ready."""
        with self._managing(context) as models:
            model = models.describe(request.name, request.version or None)
            return messages.ModelReadyResponse(ready=model.ready > 0)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        """What this is."""
        return messages.ServerMetadataResponse(
            name="torchserve", version="0.12.0", extensions=["binary_tensor_data"]
        )

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        """A model's tensors."""
        with self._managing(context) as models:
            version = models.describe(request.name, request.version or None).version
        body, _ = self._ask(_path(request.name, version) + "/v2/metadata", None, {}, context)
        told = json.loads(body)
        answer = messages.ModelMetadataResponse(
            name=told["name"], versions=told["versions"], platform=told["platform"]
        )
        for name in ("inputs", "outputs"):
            getattr(answer, name).extend(
                messages.ModelMetadataResponse.TensorMetadata(**one) for one in told[name]
            )
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        """One request to a model."""
        try:
            path = _path(request.model_name, request.model_version)
            body, length = write_request(request)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        headers = {HEADER: str(length), "content-type": "application/octet-stream"}
        return read_answer(*self._ask(path, body, headers, context))

    def _ask(self, path: str, body: bytes | None, headers: Mapping[str, str], context: Any) -> tuple[bytes, int]:
        """A body, and how much of it is JSON. An error ends the call."""
        if not hasattr(self._own, "session"):
            self._own.session = requests.Session()
        try:
            answer = self._own.session.post(
                self.inference + path, body, headers=dict(headers), timeout=self.timeout
            )
        except requests.Timeout:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"no answer within {self.timeout:g} s")
        except requests.RequestException:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server gave no answer")
        if answer.status_code != 200:
            _, said = reason(answer.content)
            _abort(context, answer.status_code, said or "the server refused the request")
        return answer.content, int(answer.headers.get(HEADER, len(answer.content)))

    @contextmanager
    def _managing(self, context: Any) -> Iterator[ManagementClient]:
        try:
            with ManagementClient(self.management, timeout=self.timeout) as models:
                yield models
        except Refused as error:
            _abort(context, error.status, str(error))
        except (ClientError, ValueError) as error:
            context.abort(grpc.StatusCode.UNAVAILABLE, str(error))


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
        "outputs": [{"name": one.name, "parameters": _parameters(one.parameters)} for one in request.outputs],
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


def _path(name: str, version: str) -> str:
    parts = [segment("name", name), *([segment("version", version)] if version else [])]
    return "/predictions/" + "/".join(parts)


def _abort(context: Any, status: int, message: str) -> NoReturn:
    other = grpc.StatusCode.INVALID_ARGUMENT if status < 500 else grpc.StatusCode.INTERNAL
    context.abort(CODES.get(status, other), message)
    raise AssertionError  # abort raises


def start(service: OpenInference, address: str, threads: int) -> Any:
    """A gRPC server that listens. Raises RuntimeError where the address cannot be used."""
    options = [
        ("grpc.max_receive_message_length", MOST_BYTES),
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
    parser = argparse.ArgumentParser(
        prog="python -m serving.open_inference", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--address", default="127.0.0.1:8001", metavar="HOST:PORT", help="where to listen (default: %(default)s)"
    )
    parser.add_argument(
        "--inference",
        default="http://127.0.0.1:8080",
        metavar="URL",
        help="TorchServe's inference port (default: %(default)s)",
    )
    parser.add_argument(
        "--management",
        default="http://127.0.0.1:8081",
        metavar="URL",
        help="its management port (default: %(default)s)",
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
    flags = parser.parse_args(arguments)
    for name in ("threads", "timeout"):
        if getattr(flags, name) <= 0:
            parser.error(f"--{name}: expected a number above 0")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        server = start(
            OpenInference(flags.inference, flags.management, flags.timeout), flags.address, flags.threads
        )
    except RuntimeError:
        print(f"error: --address: {flags.address} cannot be used", file=sys.stderr)
        return 1
    print(f"Open Inference Protocol on {flags.address}, for {flags.inference}", file=sys.stderr, flush=True)
    stop.wait()
    server.stop(grace=flags.timeout).wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
