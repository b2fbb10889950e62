"""Every path that the gateway lets through, and where it leads. What stands in no row gets 404.

A row's path is a regular expression for a whole path; `MODEL` and `VERSION` in it are the names of a model and of
a version. The handler sees `rest` behind its own address (`url_path`), and so knows which protocol was meant; the
model is one that the path names, or that which the configuration has for `@predict`, `@generate` or `@embeddings`;
`@models` is the one that generates, or where none does the one that embeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from serving.gateway.config import NAME, Gateway

INFERENCE, ADMINISTRATION, OPEN = "inference", "administration", "open"  # scopes; open ones need no key
METHODS = ("GET", "HEAD", "POST", "DELETE")  # that there are


@dataclass(frozen=True)
class Route:
    """One row."""

    kind: str  # a word that the template knows
    method: str
    path: str
    model: str = "-"
    rest: str = ""
    scope: str = INFERENCE


ROUTES = (
    # Whether it is well. No key: those who ask are load balancers.
    Route("live", "GET", "/livez", scope=OPEN),
    Route("live", "GET", "/v2/health/live", scope=OPEN),
    Route("ready", "GET", "/|/health|/ping|/readyz|/v2/health/ready", scope=OPEN),
    Route("model-ready", "GET", "/v2/models/(MODEL)/ready", r"\1", scope=OPEN),
    Route("model-ready", "GET", "/v2/models/(MODEL)/versions/(VERSION)/ready", r"\1/\2", scope=OPEN),
    # The seeds' routes, SageMaker's, and Hugging Face's.
    Route("predict", "POST", "/|/predict|/invocations", "@predict"),
    Route("predict", "POST", "/generate", "@generate"),
    Route("predict", "POST", "/generate-stream", "@generate", "generate-stream"),
    # OpenAI's. The body says which model, where there are several.
    Route("openai", "POST", "/v1/(chat/completions|completions|responses)", "@generate", r"v1/\1"),
    Route("openai", "POST", "/v1/embeddings", "@embeddings", "v1/embeddings"),
    Route("openai-models", "GET", "/v1/models", "@models", "v1/models"),
    # TorchServe's own.
    Route("predict", "POST", "/predictions/(MODEL)", r"\1"),
    Route("predict", "POST", "/predictions/(MODEL)/(VERSION)", r"\1/\2"),
    Route("predict", "POST", "/predictions/(MODEL)/(VERSION)/((?:v1|v2)(?:/[a-z_]{1,40}){1,4})", r"\1/\2", r"\3"),
    Route("predict", "GET", "/predictions/(MODEL)/(VERSION)/(v1/models(?:/MODEL)?|v2/metadata)", r"\1/\2", r"\3"),
    # KServe's, version 1 and 2 (Open Inference Protocol).
    Route("model", "GET", "/v1/models/(MODEL)", r"\1"),
    Route("predict", "POST", "/v1/models/(MODEL):predict", r"\1"),
    Route("server", "GET", "/v2"),
    Route("predict", "GET", "/v2/models/(MODEL)", r"\1", "v2/metadata"),
    Route("predict", "GET", "/v2/models/(MODEL)/versions/(VERSION)", r"\1/\2", "v2/metadata"),
    Route("predict", "POST", "/v2/models/(MODEL)/(infer|generate|generate_stream)", r"\1", r"v2/\2"),
    Route(
        "predict",
        "POST",
        "/v2/models/(MODEL)/versions/(VERSION)/(infer|generate|generate_stream)",
        r"\1/\2",
        r"v2/\3",
    ),
)
ADMINISTRATOR = (
    Route("manage", "GET", "/models", scope=ADMINISTRATION),
    Route("manage", "GET", "/models/MODEL(?:/VERSION)?", scope=ADMINISTRATION),
    Route("load", "POST", "/models/(MODEL)/load", r"\1", scope=ADMINISTRATION),
    Route("manage", "DELETE", "/models/MODEL(?:/VERSION)?", scope=ADMINISTRATION),
)

# What serving/open_inference.py has of inference.GRPCInferenceService, and the scopes that the same has over HTTP.
CALLS = {
    "ServerLive": OPEN,
    "ServerReady": OPEN,
    "ModelReady": OPEN,
    "ServerMetadata": INFERENCE,
    "ModelMetadata": INFERENCE,
    "ModelInfer": INFERENCE,
}


def table(gateway: Gateway) -> Sequence[Route]:
    """The rows of this gateway: those above, and what its configuration adds."""
    own = (*ROUTES, *(ADMINISTRATOR if gateway.administration else ()))
    added = [  # literal: one may be called /MODEL
        *(Route("ready", "GET", _literal(path), scope=OPEN) for path in gateway.health),
        *(Route("predict", "POST", _literal(path), "@predict") for path in gateway.predict),
    ]
    return (*added, *(replace(route, path=_pattern(route.path)) for route in own))


def route_map(routes: Sequence[Route]) -> Iterator[str]:
    """Lines of a HAProxy map: `METHOD PATH` as a regular expression -> kind|model|rest|scope."""
    for route in routes:
        method = "(?:GET|HEAD)" if route.scope == OPEN else route.method
        yield f"^{method}:(?:{route.path})$ {route.kind}|{route.model}|{route.rest}|{route.scope}"


def calls_map() -> Iterator[str]:
    """Lines of a HAProxy map: a method of the gRPC service, by its path -> its scope."""
    for method, scope in CALLS.items():
        yield f"/inference.GRPCInferenceService/{method} {scope}"


def _pattern(path: str) -> str:
    return path.replace("MODEL", NAME).replace("VERSION", NAME)


def _literal(path: str) -> str:
    return path.replace(".", r"\.")
