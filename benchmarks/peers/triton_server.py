"""Triton with its dynamic batcher: python triton_server.py TASK MODEL PORT QUEUE_DELAY_MICROSECONDS."""

from __future__ import annotations

import logging
import sys

import encode
import numpy
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MAX_BATCH = 64


def main(task: str, model: str, port: str, delay: str) -> None:
    """Serves the model `bench` until it is told to stop."""
    logging.basicConfig(level=logging.WARNING)
    encoder = encode.load(task, model)

    @batch
    def infer(text: numpy.ndarray) -> dict[str, numpy.ndarray]:
        return {"output": encoder([row[0].decode() for row in text])}

    host, first = "127.0.0.1", int(port)
    config = TritonConfig(
        http_address=host,
        grpc_address=host,
        metrics_address=host,
        http_port=first,
        grpc_port=first + 1,
        metrics_port=first + 2,
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="bench",
            infer_func=infer,
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="output", dtype=numpy.float32, shape=(-1,))],
            config=ModelConfig(
                max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=int(delay))
            ),
        )
        triton.serve()


if __name__ == "__main__":
    main(*sys.argv[1:])
