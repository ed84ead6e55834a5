"""Language models of the field's benchmarks, as ordinary Flax modules: character and word LSTMs, and a small
transformer.

    char_lstm      embed 8, LSTM 256, LSTM 256, dense                    Shakespeare, 90 characters: 820,522 numbers
    word_lstm      embed 96, LSTM 670, dense 96, dense                   Stack Overflow, 10,004 words: 4,050,748
    transformer    embed 96, 3 layers of 8 heads and 1536, tied          Stack Overflow, 10,004 words: 1,962,912

An example is a sequence of tokens `x` [T] and the next ones `y` [T]; token 0 is padding and counts nowhere.
Its loss is the mean over its tokens, so a client's gradient weighs its sequences alike, however many tokens
each has.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, appendix C (both LSTMs); Wang et al., "A Field
Guide to Federated Optimization", 2021, appendix, and Granqvist et al., "pfl-research", 2024 (transformer).

>>> import jax
>>> task = char_lstm()
>>> sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0))))
820522
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from fedjax_core.models.base import POSITIVE_LOSS, accuracy, cross_entropy, labels_below
from fedjax_core.models.from_flax import from_flax
from fedjax_core.task import Task
from fedjax_core.types import Array, Batch


class LSTM(nn.Module):
    """Stacked LSTMs: tokens [B, T] to logits [B, T, vocabulary]."""

    vocabulary: int
    embed: int
    hidden: tuple[int, ...]
    project: int = 0  # units of a dense layer before the last; 0: none

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Logits of the next token at each place."""
        x = nn.Embed(self.vocabulary, self.embed)(tokens)
        for units in self.hidden:
            x = nn.RNN(nn.OptimizedLSTMCell(units))(x)
        x = nn.Dense(self.project)(x) if self.project else x
        return nn.Dense(self.vocabulary)(x)


class Transformer(nn.Module):
    """A transformer: tokens [B, T] to logits [B, T, vocabulary]; each place sees those before it. Layers are
    normalised after the residual sum."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    feedforward: int
    dropout: float

    @nn.compact
    def __call__(self, tokens: Array, train: bool = False) -> Array:
        """Logits of the next token at each place; drops only where `train`."""
        embed, drop = nn.Embed(self.vocabulary, self.width), nn.Dropout(self.dropout, deterministic=not train)
        x = embed(tokens) * math.sqrt(self.width)
        x = drop(x + jnp.asarray(positions(tokens.shape[1], self.width), x.dtype)[None])
        mask = nn.make_causal_mask(tokens)
        for _ in range(self.layers):
            attended = nn.MultiHeadDotProductAttention(
                self.heads, dropout_rate=self.dropout, deterministic=not train
            )(x, mask=mask)
            x = nn.LayerNorm()(x + drop(attended))
            x = nn.LayerNorm()(x + drop(nn.Dense(self.width)(drop(nn.relu(nn.Dense(self.feedforward)(x))))))
        return embed.attend(x)


def char_lstm(vocabulary: int = 90, *, length: int = 80) -> Task:
    """Prediction of the next character in sequences of `length`, columns `x` and `y`; 90 characters are
    Shakespeare's with the marks of TFF."""
    return _next_token(LSTM(vocabulary, 8, (256, 256)), vocabulary, length)


def word_lstm(vocabulary: int = 10_004, *, length: int = 20) -> Task:
    """Prediction of the next word in sequences of `length`, columns `x` and `y`, by an LSTM."""
    return _next_token(LSTM(vocabulary, 96, (670,), project=96), vocabulary, length)


def transformer(
    vocabulary: int = 10_004,
    *,
    length: int = 20,
    width: int = 96,
    layers: int = 3,
    heads: int = 8,
    feedforward: int = 1536,
    dropout: float = 0.1,
) -> Task:
    """Prediction of the next word in sequences of `length`, columns `x` and `y`, by a transformer; `heads`
    must divide `width`."""
    if width % heads or width % 2:
        raise ValueError(f"width must be even, and a multiple of heads, got width={width} and heads={heads}")
    return _next_token(
        Transformer(vocabulary, width, layers, heads, feedforward, dropout), vocabulary, length
    )


def positions(length: int, width: int) -> np.ndarray:
    """Sines and cosines of each place, [length, width] float32 (Vaswani et al., "Attention Is All You Need",
    NeurIPS 2017, 3.5)."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, width).astype(np.float32)


def _next_token(module: nn.Module, vocabulary: int, length: int) -> Task:
    """The task of a module that gives logits of the next token; padding in `y` does not count."""

    def over_tokens(of: Array, batch: Batch) -> Array:
        counts = (batch["y"] > 0).astype(of.dtype)
        return jnp.sum(of.reshape(counts.shape) * counts, axis=1) / jnp.maximum(jnp.sum(counts, axis=1), 1)

    def loss(logits: Array, batch: Batch) -> Array:
        return over_tokens(cross_entropy(logits.reshape(-1, vocabulary), batch["y"].reshape(-1)), batch)

    def metrics(logits: Array, batch: Batch) -> dict[str, Array]:
        return {
            "accuracy": over_tokens(accuracy(logits.reshape(-1, vocabulary), batch["y"].reshape(-1)), batch)
        }

    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    task = from_flax(
        module,
        {"x": tokens, "y": tokens},
        loss=loss,
        metrics=metrics,
        inputs=lambda batch: batch["x"].astype(jnp.int32),
    )
    return task._replace(check=labels_below(vocabulary), ranges=(POSITIVE_LOSS, ("accuracy", 0.0, 1.0)))
