"""A Transformer language model on texts, one after another, in the style of Flax's LM1B.

lm.diff adds plasticity.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training import train_state


@dataclasses.dataclass(frozen=True)
class Config:
    vocab_size: int = 10_000
    emb_dim: int = 512
    num_heads: int = 8
    num_layers: int = 6
    mlp_dim: int = 2048
    max_len: int = 128
    learning_rate: float = 0.0016
    warmup_steps: int = 1000
    weight_decay: float = 0.1
    batch_size: int = 32
    num_train_steps: int = 10_000  # on each text


class TransformerBlock(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, x, mask):
        config = self.config
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=config.num_heads)(y, mask=mask)
        y = nn.Dense(config.mlp_dim)(nn.LayerNorm()(x))
        return x + nn.Dense(config.emb_dim)(nn.relu(y))


class TransformerLM(nn.Module):
    config: Config

    @nn.compact
    def __call__(self, tokens):
        config = self.config
        embed = nn.Embed(config.vocab_size, config.emb_dim, name="embed")
        position = self.param(
            "position", nn.initializers.normal(0.02), (config.max_len, config.emb_dim)
        )
        x = embed(tokens) + position[: tokens.shape[-1]]
        mask = nn.make_causal_mask(tokens)
        for _ in range(config.num_layers):
            x = TransformerBlock(config)(x, mask)
        return embed.attend(nn.LayerNorm()(x))


def create_learning_rate_schedule(learning_rate, warmup_steps):
    """A linear warm-up, then one over the square root of the step."""

    def rsqrt(count):
        return learning_rate * jnp.sqrt(warmup_steps / (count + warmup_steps))

    warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([warmup, rsqrt], [warmup_steps])


def create_train_state(key, config):
    model = TransformerLM(config)
    params = jax.jit(model.init)(key, jnp.zeros((1, config.max_len), jnp.int32))["params"]
    learning_rate_fn = create_learning_rate_schedule(config.learning_rate, config.warmup_steps)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(learning_rate_fn, b2=0.98, weight_decay=config.weight_decay),
    )
    return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)


def train_and_evaluate(config, texts):
    """Trains on texts, arrays of tokens of shape (sequences, max_len + 1)."""
    rng = np.random.default_rng(0)
    state = create_train_state(jax.random.key(0), config)

    def nll(params, tokens):
        """Summed over the tokens after the first."""
        logits = TransformerLM(config).apply({"params": params}, tokens[..., :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[..., 1:]).sum()

    @jax.jit
    def loss_fn(params, tokens):
        return nll(params, tokens) / tokens[..., 1:].size

    @jax.jit
    def train_step(state, tokens):
        loss, grads = jax.value_and_grad(loss_fn)(state.params, tokens)
        return state.apply_gradients(grads=grads), {"loss": loss}

    for tokens in texts:
        for step in range(config.num_train_steps):
            batch = tokens[rng.integers(len(tokens), size=config.batch_size)]
            state, metrics = train_step(state, batch)
            if step % 100 == 0:
                print(f"step {step}: loss {metrics['loss']:.4f}")
        print(f"perplexity {jnp.exp(loss_fn(state.params, tokens)):.1f}")
    return state
