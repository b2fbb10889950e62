"""A client of TorchServe: inference, management and metrics, and a command line (`python -m client`)."""

from client.errors import BadReply, ClientError, NotReachable, NotReady, Refused
from client.inference import InferenceClient
from client.management import ManagementClient
from client.metrics import MetricsClient, Sample
from client.models import Model, Worker
from client.prompts import EncodedPrompts

__all__ = [
    "BadReply",
    "ClientError",
    "EncodedPrompts",
    "InferenceClient",
    "ManagementClient",
    "MetricsClient",
    "Model",
    "NotReachable",
    "NotReady",
    "Refused",
    "Sample",
    "Worker",
]
