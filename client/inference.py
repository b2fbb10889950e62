"""Predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from client.errors import Refused
from client.prompts import SAFETENSORS, EncodedPrompts, read
from client.transport import Transport, segment


class InferenceClient(Transport):
    """TorchServe's inference port."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        timeout: float = 60.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Address a server; see Transport for the arguments."""
        super().__init__(url, timeout, headers)

    def predict(
        self,
        name: str,
        document: str | Sequence[str] | Mapping[str, Any],
        /,
        version: str | None = None,
        *,
        retries: int = 0,
        **parameters: Any,
    ) -> Any:
        """Ask a model, and return its parsed JSON answer.

        Args:
            name: the model's name.
            document: one text, sent as {"text": ...}; texts, sent as {"texts": [...]}; or a JSON object, sent
                as it is.
            version: the model's version; None is its default version.
            retries: how often to ask again when the connection broke after the request was sent and before
                its answer came. The model may then compute the answer twice. That is harmless for a model
                that only computes, as batch predictions do; but not every model does, so 0 is the default. A
                request that could not be sent at all is tried again in any case.
            parameters: further fields of the JSON document, such as top_k=3. One that is called version or
                retries has to be written into a document of your own.

        Raises:
            NotReachable: no answer came; its `sent` says whether the model may have seen the request.
            Refused: the model or the server said no.
            BadReply: the answer is no JSON.
        """
        path = prediction_path(name, version)
        return self.call("POST", path, document=merge(fields(document), parameters), retries=retries).json()

    def encode_prompt(
        self,
        name: str,
        prompt: str | Sequence[str],
        /,
        version: str | None = None,
        *,
        retries: int = 0,
        **parameters: Any,
    ) -> EncodedPrompts:
        """Encode prompts for a diffusion model.

        Args:
            name: the model's name.
            prompt: one prompt, or several.
            version: the model's version; None is its default version.
            retries: as for predict.
            parameters: further fields of the request: max_sequence_length, compact, truncation. With `compact`
                less travels, and the answer's `padded()` is what would have come without it.

        Raises:
            NotReachable, Refused: as for predict.
            BadReply: the answer holds no encoded prompts.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        document = merge({"prompt": prompt} if isinstance(prompt, str) else {"prompts": prompts}, parameters)
        path = prediction_path(name, version)
        reply = self.call("POST", path, document=document, accept=SAFETENSORS, retries=retries)
        return read(reply, len(prompts))

    def ping(self) -> bool:
        """Whether the server calls itself healthy.

        It does while models load, while a worker ends again and again, and when there is no model at all. To
        learn whether a model answers, ask ManagementClient.ready.
        """
        try:
            return bool(self.call("GET", "/ping", retries=2).field("status", str) == "Healthy")
        except Refused as error:
            if error.status >= 500:
                return False
            raise


def prediction_path(name: str, version: str | None) -> str:
    """Where a model predicts."""
    path = f"/predictions/{segment('name', name)}"
    return path if version is None else f"{path}/{segment('version', version)}"


def fields(document: str | Sequence[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """What predict was given, as the JSON object that the handler reads."""
    if isinstance(document, str):
        return {"text": document}
    if isinstance(document, Mapping):
        return document
    if isinstance(document, Sequence) and all(isinstance(text, str) for text in document):
        return {"texts": list(document)}
    raise TypeError("predict takes a text, a list of texts or a mapping")


def merge(document: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the parameters in it; neither silently overrules the other."""
    twice = sorted(document.keys() & parameters.keys())
    if twice:
        raise ValueError(f"given twice, in the document and as a parameter: {', '.join(twice)}")
    return {**document, **parameters}
