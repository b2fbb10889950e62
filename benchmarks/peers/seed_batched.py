# serving/batched_server.py
from fastapi import FastAPI
from pydantic import BaseModel
from typing import List, Dict, Any
import asyncio
import os  # repair: for the model's path
from collections import deque
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
import time
import uuid


class InferenceRequest(BaseModel):
    text: str
    request_id: str = None


class BatchedInferenceServer:
    """Server with dynamic batching."""

    def __init__(
        self,
        model_path: str,
        max_batch_size: int = 32,
        max_wait_time: float = 0.1,  # seconds
    ):
        self.model_path = model_path
        self.max_batch_size = max_batch_size
        self.max_wait_time = max_wait_time

        # Load model
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = AutoModelForSequenceClassification.from_pretrained(model_path)
        self.model.to(self.device)
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model_path)

        # Request queue
        self.queue: deque = deque()
        self.results: Dict[str, Any] = {}
        self.lock = asyncio.Lock()

        # Start batch processor
        self._running = True

    async def start(self):
        """Start the batch processor."""
        asyncio.create_task(self._batch_processor())

    async def stop(self):
        """Stop the batch processor."""
        self._running = False

    async def predict(self, text: str) -> Dict[str, Any]:
        """Submit prediction request."""
        request_id = str(uuid.uuid4())
        event = asyncio.Event()

        async with self.lock:
            self.queue.append({
                "id": request_id,
                "text": text,
                "event": event,
            })

        # Wait for result
        await event.wait()

        result = self.results.pop(request_id)
        return result

    async def _batch_processor(self):
        """Process batches continuously."""
        while self._running:
            batch = []
            start_time = time.time()

            # Collect batch
            while len(batch) < self.max_batch_size:
                elapsed = time.time() - start_time

                if elapsed >= self.max_wait_time and batch:
                    break

                async with self.lock:
                    if self.queue:
                        batch.append(self.queue.popleft())

                if not batch:
                    await asyncio.sleep(0.01)
                    start_time = time.time()
                elif not self.queue:
                    # repair: without it nothing here yields, and no request comes in until the time is up
                    await asyncio.sleep(0.001)

            if not batch:
                continue

            # Process batch
            texts = [req["text"] for req in batch]
            results = await self._run_inference(texts)

            # Distribute results
            for req, result in zip(batch, results):
                self.results[req["id"]] = result
                req["event"].set()

    async def _run_inference(self, texts: List[str]) -> List[Dict[str, Any]]:
        """Run inference on batch."""
        loop = asyncio.get_event_loop()

        def _inference():
            inputs = self.tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=512,
                return_tensors="pt",
            )
            inputs = {k: v.to(self.device) for k, v in inputs.items()}

            with torch.no_grad():
                outputs = self.model(**inputs)
                probs = torch.softmax(outputs.logits, dim=-1)

            results = []
            for i in range(len(texts)):
                pred = torch.argmax(probs[i]).item()
                results.append({
                    "prediction": pred,
                    "confidence": probs[i][pred].item(),
                })
            return results

        return await loop.run_in_executor(None, _inference)


# FastAPI app
app = FastAPI()
server = BatchedInferenceServer(os.environ["BENCH_MODEL"])  # repair: was the hub's name of a model


@app.on_event("startup")
async def startup():
    await server.start()


@app.on_event("shutdown")
async def shutdown():
    await server.stop()


@app.post("/predict")
async def predict(request: InferenceRequest):
    result = await server.predict(request.text)
    return result
