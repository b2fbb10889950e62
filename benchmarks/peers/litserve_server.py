"""LitServe with batching: python litserve_server.py TASK MODEL PORT BATCH_TIMEOUT_SECONDS."""

from __future__ import annotations

import sys
from typing import Any

import encode
import litserve
import numpy

MAX_BATCH = 64


class EncoderAPI(litserve.LitAPI):
    """One text a request."""

    def __init__(self, task: str, model: str, batch_timeout: float) -> None:
        super().__init__(max_batch_size=MAX_BATCH, batch_timeout=batch_timeout)
        self.task, self.path = task, model

    def setup(self, device: str) -> None:
        """Loads the model into the worker."""
        self.encode = encode.load(self.task, self.path)

    def decode_request(self, request: dict[str, str]) -> str:
        """A body is {"text": …}."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """Texts are batched by the tokenizer."""
        return inputs

    def predict(self, x: list[str]) -> numpy.ndarray:
        """One row a text."""
        return self.encode(x)

    def unbatch(self, output: numpy.ndarray) -> list[list[float]]:
        """Lists, as JSON has them."""
        return output.tolist()

    def encode_response(self, output: list[float]) -> dict[str, Any]:
        """An answer is {"output": […]}."""
        return {"output": output}


if __name__ == "__main__":
    task, model, port, timeout = sys.argv[1:]
    server = litserve.LitServer(EncoderAPI(task, model, float(timeout)), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False)
