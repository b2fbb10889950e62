# serving/torchserve/handler.py
"""Custom TorchServe handler."""
from ts.torch_handler.base_handler import BaseHandler
import torch
import json
import logging

logger = logging.getLogger(__name__)


class TransformerHandler(BaseHandler):
    """Handler for transformer models."""

    def __init__(self):
        super().__init__()
        self.initialized = False

    def initialize(self, context):
        """Initialize handler."""
        self.manifest = context.manifest
        properties = context.system_properties
        model_dir = properties.get("model_dir")

        self.device = torch.device(
            "cuda" if torch.cuda.is_available() else "cpu"
        )

        # Load model and tokenizer
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.model = AutoModelForSequenceClassification.from_pretrained(model_dir)
        self.model.to(self.device)
        self.model.eval()

        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)

        self.initialized = True
        logger.info(f"Model loaded on {self.device}")

    def preprocess(self, requests):
        """Preprocess requests."""
        texts = []
        for request in requests:
            data = request.get("data") or request.get("body")
            if isinstance(data, bytes):
                data = data.decode("utf-8")
            if isinstance(data, str):
                data = json.loads(data)
            texts.append(data.get("text", ""))

        inputs = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=512,
            return_tensors="pt",
        )

        return {k: v.to(self.device) for k, v in inputs.items()}

    def inference(self, inputs):
        """Run inference."""
        with torch.no_grad():
            outputs = self.model(**inputs)
        return outputs

    def postprocess(self, outputs):
        """Postprocess outputs."""
        probs = torch.softmax(outputs.logits, dim=-1)
        predictions = torch.argmax(probs, dim=-1)

        results = []
        for i in range(len(predictions)):
            results.append({
                "prediction": predictions[i].item(),
                "confidence": probs[i][predictions[i]].item(),
                "probabilities": probs[i].tolist(),
            })

        return results
