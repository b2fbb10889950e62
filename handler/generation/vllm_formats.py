"""A format that answers cannot keep to is refused: a JSON schema, a regular expression or a grammar.

vLLM reads it before it takes a request, and makes an automaton of it in the engine, where one that cannot be made,
or that lets no answer begin, is the engine's failure: 500. So it is made here too, of bytes in place of tokens, in
some 2 ms; 45 ms for a schema of 300 fields.
"""

from __future__ import annotations

from typing import Any

# With `auto` a format may be judged by each of the backends, and is then kept by the one that the engine's first
# format was for (vllm/v1/structured_output/__init__.py:140): 500, or an answer that does not keep to it.
BACKEND = "xgrammar"  # the first that `auto` tries
TOKENS = [*(f"<0x{byte:02X}>" for byte in range(256)), "</s>"]


def choose_backend(arguments: Any) -> None:
    """One for all formats, where the configuration does not say."""
    if arguments.structured_outputs_config.backend == "auto":
        arguments.structured_outputs_config.backend = BACKEND


def judge_whole_formats() -> None:
    """Has vLLM's check of a request make the automaton."""
    import xgrammar  # noqa: PLC0415  vLLM brings it
    from vllm.exceptions import VLLMValidationError  # noqa: PLC0415
    from vllm.v1.structured_output import backend_xgrammar as stock  # noqa: PLC0415
    from vllm.v1.structured_output.request import get_structured_output_key  # noqa: PLC0415

    def first_tokens(sampling: Any) -> Any:
        """(1, 9) int32: a bit for each token that an answer may begin with."""
        automaton = backend.compile_grammar(*get_structured_output_key(sampling.structured_outputs))
        allowed = xgrammar.allocate_token_bitmask(1, len(TOKENS))
        automaton.fill_bitmask(allowed, 0)
        return allowed

    backend = stock.XgrammarBackend.__new__(stock.XgrammarBackend)  # its tokenizer's information would take long
    backend.vocab_size, backend.num_speculative_tokens = len(TOKENS), 0
    backend.disable_any_whitespace = False
    about = xgrammar.TokenizerInfo(TOKENS, xgrammar.VocabType.BYTE_FALLBACK, stop_token_ids=[len(TOKENS) - 1])
    backend.compiler = xgrammar.GrammarCompiler(about, max_threads=1, cache_enabled=False)
    read = stock.validate_xgrammar_grammar

    def validate_xgrammar_grammar(sampling: Any) -> None:
        read(sampling)
        if sampling.structured_outputs is None:
            return
        try:
            possible = first_tokens(sampling).any()
        except Exception as error:
            raise VLLMValidationError(f"this format cannot be kept to: {error}") from error
        if not possible:
            raise VLLMValidationError("this format cannot be kept to: no answer does")

    stock.validate_xgrammar_grammar = validate_xgrammar_grammar
