"""The two-layer causal transformer for StackOverflow (docs/method.md#models).

Tokens are numbers of a vocabulary of 10,000, 0 the pad, whose row is an ordinary one; the token
embedding has one row more. Position t sees tokens up to t and predicts the token that follows.
Norms follow the residual sums. Dropout follows the embedding norm, the attention, the FFN's
GELU and the FFN.

Every layer but the output layer is prunable. Costs kappa are hand-set divisors
(docs/method.md#layer-costs). Width methods cut the heads of q, k, v and of o's input alike.

Shapes: B batch, T tokens, d model units, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fedgmr_hpc.fl.widths import Axis
from fedgmr_hpc.models.layers import Forward, LayerSpec, Start, embedding, layer_norm, linear

VOCABULARY = 10_000
MAX_TOKENS = 128
MODEL_UNITS, FFN_UNITS = 96, 384
NUM_HEADS = 4
ENCODERS = ("encoder1", "encoder2")
POSITION_COST, TOKEN_COST, FFN_COST = 5.0, 0.5, 0.6667  # 1 for the others
FFN_START = Start("normal", 0.02)

_STREAM = Axis(MODEL_UNITS)
_HEADS = Axis(MODEL_UNITS, heads=NUM_HEADS)
_FFN = Axis(FFN_UNITS)


def transformer_layers() -> tuple[LayerSpec, ...]:
    """Build the layers in forward order."""
    return (
        embedding("positions", MAX_TOKENS, _STREAM, cost=POSITION_COST),
        embedding("tokens", VOCABULARY + 1, _STREAM, cost=TOKEN_COST),
        layer_norm("norm", _STREAM),
        *(layer for name in ENCODERS for layer in _encoder(name)),
        linear("decoder.linear1", _STREAM, _STREAM),
        layer_norm("decoder.norm", _STREAM),
        linear("decoder.linear2", _STREAM, Axis(VOCABULARY, cut="whole"), prunable=False),
    )


def _encoder(name: str) -> Iterator[LayerSpec]:
    for part in "qkv":
        yield linear(f"{name}.{part}", _STREAM, _HEADS)
    yield linear(f"{name}.o", _HEADS, _STREAM)
    yield layer_norm(f"{name}.norm1", _STREAM)
    yield linear(f"{name}.linear1", _STREAM, _FFN, FFN_START, cost=FFN_COST)
    yield linear(f"{name}.linear2", _FFN, _STREAM, FFN_START, cost=FFN_COST)
    yield layer_norm(f"{name}.norm2", _STREAM)


def transformer_logits(net: Forward, tokens: Tensor) -> Tensor:
    """Compute the logits [B, T, V] of int64 tokens [B, T], T at most 128."""
    positions = net.embedding("positions", torch.arange(tokens.shape[1], device=tokens.device))
    x = net.dropout(net.layer_norm("norm", net.embedding("tokens", tokens) + positions))
    for name in ENCODERS:
        x = net.layer_norm(f"{name}.norm1", x + net.dropout(_attention(net, name, x)))
        x = net.layer_norm(f"{name}.norm2", x + net.dropout(_ffn(net, name, x)))
    x = net.layer_norm("decoder.norm", F.gelu(net.linear("decoder.linear1", x)))
    return net.linear("decoder.linear2", x)


def _attention(net: Forward, name: str, x: Tensor) -> Tensor:
    """Apply attention, [B, T, d] -> [B, T, d]; a position sees itself and those before it."""
    q, k, v = (_by_head(net.linear(f"{name}.{part}", x)) for part in "qkv")
    seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return net.linear(f"{name}.o", seen.transpose(1, 2).flatten(2))


def _by_head(x: Tensor) -> Tensor:
    """Split the heads, [B, T, heads x units] -> [B, heads, T, units]."""
    return x.view(*x.shape[:2], NUM_HEADS, -1).transpose(1, 2)


def _ffn(net: Forward, name: str, x: Tensor) -> Tensor:
    """Apply the feed-forward network, [B, T, d] -> [B, T, d]."""
    hidden = net.dropout(F.gelu(net.linear(f"{name}.linear1", x)))
    return net.linear(f"{name}.linear2", hidden)


def transformer_misfit(input_shape: tuple[int, ...]) -> str | None:
    """Say what is wrong with samples of this shape; None if nothing is."""
    if len(input_shape) == 1 and 1 <= input_shape[0] <= MAX_TOKENS:
        return None
    return f"takes sequences of 1 to {MAX_TOKENS} tokens"
