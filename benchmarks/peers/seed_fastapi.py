# serving/fastapi_server.py
from fastapi import FastAPI, HTTPException, BackgroundTasks
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel, Field
from typing import List, Dict, Any, Optional
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
import asyncio
from contextlib import asynccontextmanager
import time
import logging
import os  # repair: for the model's path

logging.basicConfig(level=logging.INFO)
logger = logging.getLogger(__name__)


# Request/Response models
class PredictRequest(BaseModel):
    texts: List[str] = Field(..., description="Texts to classify")
    model_name: str = Field(default="default", description="Model to use")


class PredictResponse(BaseModel):
    predictions: List[Dict[str, Any]]
    model_name: str
    inference_time_ms: float


class ModelInfo(BaseModel):
    name: str
    version: str
    loaded: bool
    device: str


# Model manager
class ModelManager:
    """Manage multiple models."""

    def __init__(self):
        self.models: Dict[str, Any] = {}
        self.tokenizers: Dict[str, Any] = {}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def load_model(
        self,
        name: str,
        model_path: str,
        tokenizer_path: Optional[str] = None,
    ):
        """Load a model."""
        logger.info(f"Loading model {name} from {model_path}")

        model = AutoModelForSequenceClassification.from_pretrained(model_path)
        model.to(self.device)
        model.eval()

        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path or model_path)

        self.models[name] = model
        self.tokenizers[name] = tokenizer

        logger.info(f"Model {name} loaded on {self.device}")

    def unload_model(self, name: str):
        """Unload a model."""
        if name in self.models:
            del self.models[name]
            del self.tokenizers[name]
            torch.cuda.empty_cache()
            logger.info(f"Model {name} unloaded")

    def predict(
        self,
        name: str,
        texts: List[str],
    ) -> List[Dict[str, Any]]:
        """Make predictions."""
        if name not in self.models:
            raise ValueError(f"Model {name} not loaded")

        model = self.models[name]
        tokenizer = self.tokenizers[name]

        # Tokenize
        inputs = tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=512,
            return_tensors="pt",
        )
        inputs = {k: v.to(self.device) for k, v in inputs.items()}

        # Inference
        with torch.no_grad():
            outputs = model(**inputs)
            logits = outputs.logits
            probs = torch.softmax(logits, dim=-1)

        # Format results
        predictions = []
        for i, text in enumerate(texts):
            pred_class = torch.argmax(probs[i]).item()
            confidence = probs[i][pred_class].item()
            predictions.append({
                "text": text[:100] + "..." if len(text) > 100 else text,
                "prediction": pred_class,
                "confidence": confidence,
                "probabilities": probs[i].tolist(),
            })

        return predictions

    def get_model_info(self, name: str) -> ModelInfo:
        """Get model information."""
        return ModelInfo(
            name=name,
            version="1.0.0",
            loaded=name in self.models,
            device=str(self.device),
        )


# Global model manager
model_manager = ModelManager()


@asynccontextmanager
async def lifespan(app: FastAPI):
    """Startup and shutdown events."""
    # Load default model on startup
    model_manager.load_model(
        "default",
        os.environ["BENCH_MODEL"],  # repair: was the hub's name of a model
    )
    yield
    # Cleanup on shutdown
    for name in list(model_manager.models.keys()):
        model_manager.unload_model(name)


app = FastAPI(
    title="Model Serving API",
    version="1.0.0",
    lifespan=lifespan,
)

app.add_middleware(
    CORSMiddleware,
    allow_origins=["*"],
    allow_methods=["*"],
    allow_headers=["*"],
)


@app.post("/predict", response_model=PredictResponse)
async def predict(request: PredictRequest):
    """Make predictions."""
    try:
        start_time = time.time()
        predictions = model_manager.predict(request.model_name, request.texts)
        inference_time = (time.time() - start_time) * 1000

        return PredictResponse(
            predictions=predictions,
            model_name=request.model_name,
            inference_time_ms=inference_time,
        )
    except ValueError as e:
        raise HTTPException(status_code=404, detail=str(e))
    except Exception as e:
        raise HTTPException(status_code=500, detail=str(e))


@app.get("/models", response_model=List[ModelInfo])
async def list_models():
    """List loaded models."""
    return [
        model_manager.get_model_info(name)
        for name in model_manager.models.keys()
    ]


@app.post("/models/{name}/load")
async def load_model(name: str, model_path: str):
    """Load a model."""
    try:
        model_manager.load_model(name, model_path)
        return {"status": "loaded", "model": name}
    except Exception as e:
        raise HTTPException(status_code=500, detail=str(e))


@app.delete("/models/{name}")
async def unload_model(name: str):
    """Unload a model."""
    model_manager.unload_model(name)
    return {"status": "unloaded", "model": name}


@app.get("/health")
async def health():
    """Health check."""
    return {
        "status": "healthy",
        "models_loaded": len(model_manager.models),
        "device": str(model_manager.device),
    }
