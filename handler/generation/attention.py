"""Attention of a step on a CPU: each request's tokens over that request's own.

transformers' way with SDPA is one call in which every token of a step is compared with those of all requests, and
a mask takes the others away again (transformers/integrations/sdpa_attention.py): work that grows with the square
of the requests. Here requests that add a token are rows of one call with those of about their length, and others
have a call each. On a GPU transformers' way stays: a step is one graph there, in which lengths are fixed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "by_request"  # as transformers calls it; it makes no mask for a name that it does not know
FULL = "full_attention"  # the cache's name for layers that see all tokens


@dataclass(frozen=True)
class Alike:
    """Requests that each add a token, and have about as many."""

    places: torch.Tensor  # (requests,) int64, of their tokens in the step
    read: torch.Tensor  # (requests * longest,) int64, where their tokens lie in the cache; some twice, to fill up
    filled: torch.Tensor | None  # (requests, 1, 1, longest), to be added to scores; None where none is filled up


@dataclass(frozen=True)
class Plan:
    """How the requests of a step attend in layers that see all tokens."""

    alike: Sequence[Alike]
    others: Sequence[tuple[slice, torch.Tensor]]  # of each, its tokens in the step, and where all of its own lie
    written: bool  # whether any request has tokens in the cache


def attend_by_request(model: Any) -> bool:
    """Has a model that is ready for continuous batching attend so, if it would by SDPA; whether it does.

    Its steps then have to be planned.
    """
    if model.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, attend)
    model.set_attn_implementation(NAME)
    return True


def plan_steps(runner: Any) -> None:
    """Has a model runner (continuous_batching.model_runner.ModelRunner) plan each step, once for all layers."""
    compute = runner.compute_batch

    def compute_batch(model: Any, step: Mapping[str, Any]) -> None:
        compute(model, {**step, "plan": plan(step, step["cache"])})

    runner.compute_batch = compute_batch


def plan(step: Mapping[str, Any], cache: Any) -> Plan | None:
    """What `attend` needs of a step, for all layers; None where none of them sees all tokens.

    Args:
        step: the model's arguments, as continuous batching makes them.
        cache: where tokens of earlier steps are (continuous_batching.cache.PagedAttentionCache).
    """
    if FULL not in cache.cache_allocators:
        return None
    read = step["read_index"][cache.cache_allocators[FULL].index]
    starts, firsts = step["cu_seq_lens_q"].tolist(), step["cu_seq_lens_k"][FULL].tolist()
    alike, others = defaultdict[int, list[int]](list), list[tuple[slice, torch.Tensor]]()
    for at in range(len(starts) - 1):
        known = firsts[at + 1] - firsts[at]
        if len(read) and starts[at + 1] - starts[at] == 1:
            alike[known.bit_length()].append(at)
        else:
            others.append((slice(starts[at], starts[at + 1]), read[firsts[at] : firsts[at + 1]]))
    groups = [_alike(requests, starts, firsts, read, cache.dtype) for requests in alike.values()]
    return Plan(groups, others, bool(len(read)))


def _alike(
    requests: Sequence[int], starts: Sequence[int], firsts: Sequence[int], read: torch.Tensor, dtype: torch.dtype
) -> Alike:
    places = torch.tensor([starts[at] for at in requests])
    first = torch.tensor([firsts[at] for at in requests])[:, None]
    last = torch.tensor([firsts[at + 1] - 1 for at in requests])[:, None]
    wanted = first + torch.arange(int((last - first).max()) + 1)
    beyond = wanted > last
    filled = torch.zeros(beyond.shape, dtype=dtype).masked_fill_(beyond, -torch.inf) if beyond.any() else None
    where = read[wanted.minimum(last).flatten()]
    return Alike(places, where, None if filled is None else filled[:, None, None])


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    cache: Any,
    plan: Plan,
    **step: Any,
) -> tuple[torch.Tensor, None]:
    """One layer of a step.

    Args:
        module: the layer's attention.
        query: (1, heads, tokens of the step, width).
        key: (1, key heads, tokens of the step, width); as `value`.
        value: what is taken in, and put into the cache.
        attention_mask: none.
        scaling: of scores; None: by the root of the width.
        cache: as in `plan`.
        plan: of the step.
        step: the model's arguments.

    Returns:
        (1, tokens of the step, heads, width), and no weights.

    Raises:
        NotImplementedError: the model adds something of its own to the scores.
    """
    if step.get("position_bias") is not None:
        raise NotImplementedError("the model has a position bias: set handler.attention to eager")
    allocator = cache.layer_to_allocator[module.layer_idx]
    if allocator.layer_type != FULL:
        # The cache has its tokens in an order of its own, which only it can read.
        key, value = cache.update(key, value, module.layer_idx, step)
        return _each(query, key, value, step, scaling=scaling, window=allocator.sliding_window), None
    asking, keys, values = (one[0].transpose(0, 1) for one in (query, key, value))  # (tokens, heads, width)
    nothing = keys.new_empty(0, dtype=torch.int64)
    allocator.update(keys, values, module.layer_idx, nothing, step["write_index"][allocator.index])
    if plan.written:
        keys, values = (pages.flatten(0, 1) for pages in allocator.get_cache_for_block_table(module.layer_idx))
    heads, width = keys.shape[1:]
    out = torch.empty_like(asking, memory_format=torch.contiguous_format)
    for group in plan.alike:
        shape = (len(group.places), -1, heads, width)
        k, v = (tokens.index_select(0, group.read).view(shape).transpose(1, 2) for tokens in (keys, values))
        # Heads that share a key are queries of one head: nothing is copied for them.
        q = asking.index_select(0, group.places).view(shape[0], heads, -1, width)
        answer = scaled_dot_product_attention(q, k, v, attn_mask=group.filled, scale=scaling)
        out[group.places] = answer.reshape(shape[0], *out.shape[1:])
    for own, read in plan.others:
        k, v = (tokens.index_select(0, read) if plan.written else tokens[own] for tokens in (keys, values))
        q, k, v = (one.transpose(0, 1)[None] for one in (asking[own], k, v))
        out[own] = _alone(q, k, v, scaling=scaling)[0].transpose(0, 1)
    return out[None], None


def _each(query: Any, key: Any, value: Any, step: Mapping[str, Any], **how: Any) -> torch.Tensor:
    """A layer in which each request's tokens lie side by side."""
    new, known = (step[name].diff().tolist() for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
    tokens = zip(query.split(new, 2), key.split(known, 2), value.split(known, 2), strict=True)
    return torch.cat([_alone(*one, **how) for one in tokens], 2).transpose(1, 2).contiguous()


def _alone(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float | None,
    window: int | None = None,
) -> torch.Tensor:
    """One request's: (1, heads, its tokens, width)."""
    new, known = query.shape[2], key.shape[2]
    causal = new == known and (window is None or known <= window)
    mask = None if causal or new == 1 else _mask(new, known, window)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal and new > 1, scale=scaling, enable_gqa=True
    )


def _mask(new: int, known: int, window: int | None) -> torch.Tensor:
    """(new, known): which of the tokens that are known each of the last ones may look at."""
    at = torch.arange(known - new, known)[:, None]
    other = torch.arange(known)
    seen = other <= at
    return seen if window is None else seen & (other > at - window)
