"""TorchServe's gRPC services, called without generated code: messages are built from their fields.

The two services are inference.proto and open_inference_grpc.proto of TorchServe 0.12. The latter's messages are
those of tritonclient, byte for byte, but the service has a package of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFERENCE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/"
OPEN_INFERENCE = "/org.pytorch.serve.grpc.openinference.GRPCInferenceService/"


def _messages() -> Mapping[str, Any]:
    """PredictionsRequest and PredictionResponse."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package="ts", syntax="proto3")
    request = file.message_type.add(name="PredictionsRequest")
    request.field.add(name="model_name", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    request.field.add(name="model_version", number=2, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry = request.nested_type.add(name="InputEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
    request.field.add(
        name="input",
        number=3,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_REPEATED,
        type_name=".ts.PredictionsRequest.InputEntry",
    )
    response = file.message_type.add(name="PredictionResponse")
    response.field.add(name="prediction", number=1, type=kinds.TYPE_BYTES, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ts.{name}"))
        for name in ("PredictionsRequest", "PredictionResponse")
    }


MESSAGES = _messages()


class Inference:
    """TorchServe's own service."""

    def __init__(self, channel: grpc.Channel) -> None:
        said = MESSAGES["PredictionsRequest"].SerializeToString, MESSAGES["PredictionResponse"].FromString
        self._unary = channel.unary_unary(f"{INFERENCE}Predictions", *said)
        self._stream = channel.unary_stream(f"{INFERENCE}StreamPredictions", *said)

    def predict(self, model: str, **parameters: bytes) -> bytes:
        request = MESSAGES["PredictionsRequest"](model_name=model, input=parameters)
        return bytes(self._unary(request, timeout=60).prediction)

    def stream(self, model: str, **parameters: bytes) -> Iterator[bytes]:
        request = MESSAGES["PredictionsRequest"](model_name=model, input=parameters)
        for piece in self._stream(request, timeout=60):
            yield bytes(piece.prediction)


def open_inference(channel: grpc.Channel, method: str, request: Any, answer: Any) -> Any:
    """One call of TorchServe's Open Inference service, with tritonclient's messages."""
    call = channel.unary_unary(OPEN_INFERENCE + method, type(request).SerializeToString, answer.FromString)
    return call(request, timeout=60)
