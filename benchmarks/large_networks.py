"""The networks of benchmarks/models.py, of any size: a loss of one example, parameters, a batch.

Modules take one example or a batch of them.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from benchmarks.networks import Problem, classification, cnn, language, random_words, total


class Block(nn.Module):
    """A pre-norm block of a transformer, as the body of a scan."""

    heads: int
    causal: bool = True

    @nn.compact
    def __call__(self, x, _=None):
        width = x.shape[-1]
        mask = nn.make_causal_mask(x[..., 0]) if self.causal else None
        x += nn.MultiHeadDotProductAttention(self.heads, name="attention")(
            nn.LayerNorm()(x), mask=mask
        )
        hidden = nn.gelu(nn.Dense(4 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(hidden), None


class GPT(nn.Module):
    """GPT-2, whose layers are unrolled, scanned, or scanned with each recomputed for its gradient.

    Its embedding is the head as well if ``tied``.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    layers: str = "unrolled"
    tied: bool = True
    context: int = 1024

    @nn.compact
    def __call__(self, words):
        embed = nn.Embed(self.vocabulary, self.width)
        x = embed(words) + nn.Embed(self.context, self.width)(jnp.arange(words.shape[-1]))
        if self.layers == "unrolled":
            for _ in range(self.depth):
                x, _ = Block(self.heads)(x)
        else:
            block = nn.remat(Block, prevent_cse=False) if self.layers == "remat" else Block
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(block, length=self.depth, **axes)(self.heads)(x, None)
        x = nn.LayerNorm()(x)
        return embed.attend(x) if self.tied else nn.Dense(self.vocabulary, use_bias=False)(x)


def gpt(batch: int, steps: int, vocabulary: int, **sizes) -> Problem:
    return language(GPT(vocabulary, **sizes), vocabulary, batch, steps)


def lora(
    batch: int, steps: int, vocabulary: int, rank: int = 8, merged: bool = False, **sizes
) -> Problem:
    """Products of two small matrices beside the weights of queries and values, which are frozen.

    They are added to what the weights give, or ``merged`` with the weights beforehand.
    """
    model = GPT(vocabulary, **sizes)
    _, frozen, words = gpt(batch, steps, vocabulary, **sizes)
    keys = jax.random.split(jax.random.key(2), (sizes["depth"], 2, 2))

    def pair(down, up):
        width = sizes["width"]
        shapes = (width, rank), (rank, width)
        return [
            0.02 * jax.random.normal(key, shape)
            for key, shape in zip((down, up), shapes, strict=True)
        ]

    adapters = {
        (f"Block_{i}", "attention", name): pair(*keys[i, j])
        for i in range(sizes["depth"])
        for j, name in enumerate(("query", "value"))
    }

    def beside(adapters, method, arguments, options, context):
        outputs = method(*arguments, **options)
        if context.module.path not in adapters:
            return outputs
        down, up = adapters[context.module.path]
        return outputs + (arguments[0] @ down @ up).reshape(outputs.shape)

    def merge(adapters):
        def weight(path, value):
            *layer, name = (key.key for key in path[1:])
            if name != "kernel" or tuple(layer) not in adapters:
                return value
            down, up = adapters[tuple(layer)]
            return value + (down @ up).reshape(value.shape)

        return jax.tree_util.tree_map_with_path(weight, frozen)

    def nll(adapters, example):
        if merged:
            return total(model.apply(merge(adapters), example[:-1]), example[1:])
        with nn.intercept_methods(functools.partial(beside, adapters)):
            return total(model.apply(frozen, example[:-1]), example[1:])

    return Problem(nll, adapters, words)


def norms(batch: int, steps: int, vocabulary: int, **sizes) -> Problem:
    """The scales of a GPT's layer normalisations, all else frozen."""
    nll, params, words = gpt(batch, steps, vocabulary, **sizes)
    params = traverse_util.flatten_dict(params)
    scales = {path: value for path, value in params.items() if path[-1] == "scale"}

    def of_scales(scales, example):
        return nll(traverse_util.unflatten_dict({**params, **scales}), example)

    return Problem(of_scales, scales, words)


class ViT(nn.Module):
    """A vision transformer with a class token."""

    patch: int
    width: int
    depth: int
    heads: int
    classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (self.patch, self.patch), (self.patch, self.patch))(x)
        x = x.reshape(*x.shape[:-3], -1, self.width)
        token = self.param("token", nn.initializers.normal(0.02), (1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (*x.shape[:-2], *token.shape)), x], -2)
        x += self.param("places", nn.initializers.normal(0.02), x.shape[-2:])
        for _ in range(self.depth):
            x, _ = Block(self.heads, causal=False)(x)
        return nn.Dense(self.classes)(nn.LayerNorm()(x)[..., 0, :])


def vit(batch: int, size: int, classes: int, **sizes) -> Problem:
    return classification(ViT(classes=classes, **sizes), (size, size, 3), batch, classes)


class ResNet(nn.Module):
    """ResNet of bottlenecks, strides in their middle; normalised by the averages of evaluation."""

    blocks: tuple[int, ...]
    width: int
    classes: int

    @nn.compact
    def __call__(self, x):
        def convolve(x, features, size, strides=1):
            x = nn.Conv(features, (size, size), strides, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu(convolve(x, self.width, 7, 2))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                features, strides = self.width * 2**stage, 2 if stage and not block else 1
                y = nn.relu(convolve(x, features, 1))
                y = nn.relu(convolve(y, features, 3, strides))
                y = convolve(y, 4 * features, 1)
                x = nn.relu(y + (x if block else convolve(x, 4 * features, 1, strides)))
        return nn.Dense(self.classes)(x.mean((-3, -2)))


def resnet(batch: int, size: int, classes: int, **sizes) -> Problem:
    """Its averages are constants, not parameters."""
    model = ResNet(classes=classes, **sizes)
    nll, variables, data = classification(model, (size, size, 3), batch, classes)
    averages = {"batch_stats": variables["batch_stats"]}
    return Problem(
        lambda p, example: nll({"params": p, **averages}, example), variables["params"], data
    )


class Convolution(nn.Module):
    """One convolution of any rank, and a classifier of its averages over positions."""

    features: int
    window: tuple[int, ...]
    strides: tuple[int, ...]
    classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.features, self.window, self.strides)(x))
        return nn.Dense(self.classes)(x.mean(tuple(range(-len(self.window) - 1, -1))))


def convolution(batch: int, shape: tuple[int, ...], **sizes) -> Problem:
    return classification(Convolution(**sizes), tuple(shape), batch)


def deep_lstm(batch: int, steps: int, vocabulary: int, units: int, depth: int) -> Problem:
    """A language model of LSTM layers."""

    class LanguageModel(nn.Module):
        @nn.compact
        def __call__(self, words):
            x = nn.Embed(vocabulary, units)(words)
            for _ in range(depth):
                x = nn.RNN(nn.OptimizedLSTMCell(units))(x)
            return nn.Dense(vocabulary)(x)

    return language(LanguageModel(), vocabulary, batch, steps)


class Experts(nn.Module):
    """Two of several dense layers for each token of a text, weighted by a router.

    ``dispatched``: tokens go to the experts' places, twice as many as they need on average.
    ``gathered``: the experts' weights go to the tokens.
    """

    experts: int
    how: str

    @nn.compact
    def __call__(self, x):
        tokens, width = x.shape
        scores, chosen = jax.lax.top_k(nn.softmax(nn.Dense(self.experts, use_bias=False)(x)), 2)
        init = nn.initializers.lecun_normal(batch_axis=0)
        up = self.param("up", init, (self.experts, width, 4 * width))
        down = self.param("down", init, (self.experts, 4 * width, width))
        if self.how == "gathered":
            hidden = nn.gelu(jnp.einsum("td,tkdf->tkf", x, up[chosen]))
            return jnp.einsum("tkf,tkfd,tk->td", hidden, down[chosen], scores)
        places = 4 * tokens // self.experts
        asked = jax.nn.one_hot(chosen, self.experts)  # [tokens, 2, experts]
        place = jnp.cumsum(asked.reshape(-1, self.experts), 0).reshape(asked.shape) - 1
        given = asked[..., None] * jax.nn.one_hot(place, places)  # [tokens, 2, experts, places]
        inputs = jnp.einsum("tkep,td->epd", given, x)
        hidden = nn.gelu(jnp.einsum("epd,edf->epf", inputs, up))
        outputs = jnp.einsum("epf,efd->epd", hidden, down)
        return jnp.einsum("tkep,tk,epd->td", given, scores, outputs)


def mixture(
    batch: int, steps: int, vocabulary: int, width: int, depth: int, experts: int, how: str
) -> Problem:
    """A transformer whose dense layers are mixtures of experts."""

    class LanguageModel(nn.Module):
        @nn.compact
        def __call__(self, words):
            x = nn.Embed(vocabulary, width)(words)
            mask = nn.make_causal_mask(words)
            for _ in range(depth):
                x += nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x), mask=mask)
                x += Experts(experts, how)(nn.LayerNorm()(x))
            return nn.Dense(vocabulary)(nn.LayerNorm()(x))

    return language(LanguageModel(), vocabulary, batch, steps)


def rows(batch: int, steps: int, vocabulary: int, width: int) -> Problem:
    """A table that a text of many tokens looks up, and two products, of plain arrays."""
    shapes = {"table": (vocabulary, width), "hidden": (width, width), "head": (width, vocabulary)}
    params = _normal(shapes)

    def nll(params, example):
        x = jnp.tanh(params["table"][example[:-1]] @ params["hidden"])
        return total(x @ params["head"], example[1:])

    return Problem(nll, params, random_words(batch, steps, vocabulary))


def equinox_embedding(
    batch: int, steps: int, vocabulary: int, width: int, classes: int = 100
) -> Problem:
    """Equinox's layers, each of one token, under vmap."""
    import equinox as eqx

    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "table": eqx.nn.Embedding(vocabulary, width, key=keys[0]),
        "hidden": eqx.nn.Linear(width, width, key=keys[1]),
        "head": eqx.nn.Linear(width, classes, key=keys[2]),
    }

    def nll(params, example):
        words, labels = example

        def logits(word):
            return params["head"](jnp.tanh(params["hidden"](params["table"](word))))

        return total(jax.vmap(logits)(words), labels)

    words = random_words(batch, steps, vocabulary)
    return Problem(nll, params, (words[:, :-1], words[:, 1:] % classes))


def stacked(batch: int, steps: int, vocabulary: int, width: int, depth: int) -> Problem:
    """Layers in stacked arrays, of which a loop over the layers takes the i-th."""
    square, wide = (depth, width, width), (depth, width, 4 * width)
    layers = {
        "query": square,
        "key": square,
        "value": square,
        "up": wide,
        "down": wide[:1] + wide[:0:-1],
    }
    params = {
        "layers": _normal(layers),
        **_normal({"table": (vocabulary, width), "head": (width, vocabulary)}),
    }

    def layer(weights, x):
        y = jax.nn.standardize(x)
        scores = (y @ weights["query"]) @ (y @ weights["key"]).T / jnp.sqrt(width)
        x += jax.nn.softmax(scores, where=jnp.tri(len(x), dtype=bool)) @ (y @ weights["value"])
        return x + jax.nn.gelu(jax.nn.standardize(x) @ weights["up"]) @ weights["down"]

    def nll(params, example):
        def body(i, x):
            return layer(jax.tree.map(lambda a: a[i], params["layers"]), x)

        x = jax.lax.fori_loop(0, depth, body, params["table"][example[:-1]])
        return total(jax.nn.standardize(x) @ params["head"], example[1:])

    return Problem(nll, params, random_words(batch, steps, vocabulary))


def _normal(shapes):
    """Arrays, each scaled to what is summed in a product with it."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: jax.random.normal(key, shape) / shape[-2] ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


NETWORKS = {
    "gpt": gpt,
    "lora": lora,
    "norms": norms,
    "resnet": resnet,
    "vit": vit,
    "convolution": convolution,
    "deep_lstm": deep_lstm,
    "mixture": mixture,
    "rows": rows,
    "equinox_embedding": equinox_embedding,
    "stacked": stacked,
    "cnn": cnn,
}
