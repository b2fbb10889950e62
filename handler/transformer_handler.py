"""The class that TorchServe loads. It says in which order; the modules of `handler` say how.

This file defines this one class and nothing else: TorchServe takes the only class of the module
(ts/model_loader.py:175), or any function in it that is called `handle`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ts.protocol import otf_message_handler
from ts.protocol.otf_message_handler import create_predict_response
from ts.torch_handler.base_handler import BaseHandler

from handler import wings, wire
from handler.batch import log_defect
from handler.errors import InternalError, LoadError
from handler.reading import BufferedFrames


class TransformerHandler(BaseHandler):
    """Serves one Hugging Face model: a batch of rows in, as many bodies out, in the same order."""

    def initialize(self, context: Any) -> None:
        """Loads what the archive holds and warms it up; the worker is READY when this returns."""
        otf_message_handler._retrieve_buffer = BufferedFrames()
        self.context = context
        self.manifest = context.manifest
        given = context.system_properties
        try:
            self.pipeline = wings.load(
                Path(given["model_dir"]), context.model_yaml_config, context.model_name, given.get("gpu_id")
            )
        except LoadError:
            sys.tracebacklimit = 0  # TorchServe prints the trace, twice; the message says it all
            raise
        self.initialized = True

    def preprocess(self, data: list[dict[str, Any]]) -> Any:
        """Rows to requests."""
        return self.pipeline.preprocess(data, self.context)

    def inference(self, data: Any) -> Any:
        """Requests to results."""
        return self.pipeline.inference(data)

    def postprocess(self, data: Any) -> list[bytes]:
        """Results to bodies, with a status for each."""
        bodies: list[bytes] = self.pipeline.postprocess(data, self.context, self.send)
        return bodies

    def send(self, bodies: Mapping[int, bytes], ends: Mapping[int, bool | None]) -> None:
        """Sends a message ahead of the batch's own; at least one of its rows has to go on, or the batch ends.

        Args:
            bodies: of the rows, or pieces of them.
            ends: of each whether it ends or goes on; None where the row is one piece.
        """
        context = self.context
        ids = {index: context.request_ids[index] for index in bodies}
        context.stopping_criteria = {index: lambda _, end=end: end for index, end in ends.items()}
        try:
            message = create_predict_response(bodies, ids, "Prediction success", 200, context)
        finally:
            context.stopping_criteria = None
        context.cl_socket.sendall(message)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:
        """Runs the three steps. No exception leaves it but the loss of the device.

        TorchServe answers a whole batch with 503 for any exception (ts/service.py:134), and BaseHandler's own
        handle sends the whole batch where the headers of the first row point (base_handler.py:545).
        """
        self.context = context
        context.stopping_criteria = None  # the context is shared by all calls; one left over kills the worker
        try:
            if self.pipeline.is_describe(data, context):
                return [self.pipeline.describe()]
            return self.postprocess(self.inference(self.preprocess(data)))
        except Exception as err:
            log_defect(err)
            failed = InternalError()
            return list(wire.write([failed] * len(data), context, sys.maxsize))
