"""Which large networks benchmarks/fisher_models.py measures, and in which sizes."""

from typing import Any, NamedTuple

PYTORCH, BACKPACK, KFAC = "PyTorch, batch gradient", "PyTorch, BackPACK", "JAX, kfac-jax"
# kfac-jax knows no recurrent layer nor embedding.
ALL, IN_PYTORCH = (PYTORCH, BACKPACK, KFAC), (PYTORCH, BACKPACK)


class Model(NamedTuple):
    """A network of benchmarks/large_networks.py, of some sizes."""

    what: str
    network: str
    sizes: dict[str, Any]
    small: dict[str, Any]  # what is less in a small one
    run: bool = True  # or only compile it
    peers: tuple[str, ...] = ()


GPT2 = {"vocabulary": 50_257, "width": 768, "depth": 12, "heads": 12}
NARROW = {"vocabulary": 1_000, "width": 128, "heads": 4}
SMALL = {"vocabulary": 100, "width": 32, "depth": 2, "heads": 2, "steps": 16}
BYTES = {"vocabulary": 256, "width": 64}
MIXTURE = {"vocabulary": 10_000, "width": 512, "depth": 4, "experts": 8}
SMALL_MIXTURE = {"vocabulary": 100, "width": 32, "depth": 1, "experts": 4, "steps": 16}

MODELS = {
    "gpt2": Model(
        "GPT-2 (12 layers of 768), head tied, 128 tokens, unrolled",
        "gpt",
        {"batch": 2, "steps": 128, **GPT2},
        SMALL,
        peers=ALL,
    ),
    "gpt2_scanned": Model(
        "GPT-2, head tied, 128 tokens, scanned",
        "gpt",
        {"batch": 2, "steps": 128, "layers": "scan", **GPT2},
        SMALL,
    ),
    "gpt2_untied": Model(
        "GPT-2, a head of its own, 128 tokens, unrolled",
        "gpt",
        {"batch": 2, "steps": 128, "tied": False, **GPT2},
        SMALL,
    ),
    "gpt_remat": Model(
        "GPT (12 layers of 128, 256 words), 4,096 tokens, scanned and rematerialised",
        "gpt",
        {
            "batch": 2,
            "steps": 4096,
            "layers": "remat",
            "context": 4096,
            "vocabulary": 256,
            "width": 128,
            "depth": 12,
            "heads": 8,
        },
        SMALL,
        run=False,
    ),
    "gpt24": Model(
        "GPT of 24 layers of 128, 64 tokens, unrolled",
        "gpt",
        {"batch": 4, "steps": 64, "depth": 24, **NARROW},
        {**SMALL, "depth": 6},
    ),
    "gpt48": Model(
        "GPT of 48 layers of 128, 64 tokens, unrolled",
        "gpt",
        {"batch": 4, "steps": 64, "depth": 48, **NARROW},
        {**SMALL, "depth": 12},
    ),
    "lora": Model(
        "LoRA of GPT-2 (rank 8 at queries and values), 128 tokens",
        "lora",
        {"batch": 2, "steps": 128, **GPT2},
        SMALL,
    ),
    "lora_merged": Model(
        "LoRA of GPT-2, merged with the weights in the loss",
        "lora",
        {"batch": 2, "steps": 128, "merged": True, **GPT2},
        SMALL,
    ),
    "norm_scales": Model(
        "GPT (6 layers of 384), 64 tokens, only scales of its LayerNorms trained",
        "norms",
        {"batch": 64, "steps": 64, "vocabulary": 5_000, "width": 384, "depth": 6, "heads": 6},
        {**SMALL, "batch": 8},
    ),
    "vit_b16": Model(
        "ViT-B/16, 224 × 224",
        "vit",
        {
            "batch": 8,
            "size": 224,
            "patch": 16,
            "width": 768,
            "depth": 12,
            "heads": 12,
            "classes": 1_000,
        },
        {"size": 32, "patch": 8, "width": 32, "depth": 2, "heads": 2, "classes": 10},
        peers=ALL,
    ),
    "resnet50": Model(
        "ResNet-50, 224 × 224",
        "resnet",
        {"batch": 8, "size": 224, "classes": 1_000, "blocks": (3, 4, 6, 3), "width": 64},
        {"size": 32, "classes": 10, "blocks": (1, 1, 1, 1), "width": 8},
        peers=ALL,
    ),
    "stem": Model(
        "a convolution of 7 × 7 to 64 channels, stride 2, 224 × 224",
        "convolution",
        {"batch": 8, "shape": (224, 224, 3), "features": 64, "window": (7, 7), "strides": (2, 2)},
        {"shape": (32, 32, 3), "features": 8},
        peers=ALL,
    ),
    "patches": Model(
        "a convolution of patches of 32 × 32 to 768 channels, 224 × 224",
        "convolution",
        {
            "batch": 8,
            "shape": (224, 224, 3),
            "features": 768,
            "window": (32, 32),
            "strides": (32, 32),
        },
        {"shape": (64, 64, 3), "features": 8},
        peers=ALL,
    ),
    "taps": Model(
        "a convolution of 512 taps to 32 channels, 16,000 samples",
        "convolution",
        {"batch": 8, "shape": (16_000, 1), "features": 32, "window": (512,), "strides": (1,)},
        {"shape": (256, 1), "features": 4, "window": (64,)},
        peers=ALL,
    ),
    "odd_batch": Model(
        "3c3d, 32 × 32, a prime batch, which no microbatch divides",
        "cnn",
        {"batch": 127},
        {"batch": 5},
        peers=ALL,
    ),
    "lstm": Model(
        "LSTM language model (2 layers of 650), 35 tokens",
        "deep_lstm",
        {"batch": 20, "steps": 35, "vocabulary": 10_000, "units": 650, "depth": 2},
        {"batch": 4, "steps": 8, "vocabulary": 100, "units": 16},
        peers=IN_PYTORCH,
    ),
    "experts_dispatched": Model(
        "mixture of 8 experts (4 layers of 512), 128 tokens, dispatched to 2 each",
        "mixture",
        {"batch": 8, "steps": 128, "how": "dispatched", **MIXTURE},
        SMALL_MIXTURE,
    ),
    "experts_gathered": Model(
        "mixture of 8 experts (2 layers of 128), 64 tokens, weights gathered for each",
        "mixture",
        {"batch": 8, "steps": 64, "how": "gathered", **MIXTURE, "width": 128, "depth": 2},
        SMALL_MIXTURE,
    ),
    "rows": Model(
        "256 rows of 64 looked up by 16,384 tokens",
        "rows",
        {"batch": 2, "steps": 16_384, **BYTES},
        {"steps": 256},
        peers=IN_PYTORCH,
    ),
    "rows_65536": Model(
        "256 rows of 64 looked up by 65,536 tokens",
        "rows",
        {"batch": 2, "steps": 65_536, **BYTES},
        {"steps": 512},
        run=False,
    ),
    "equinox_embedding": Model(
        "Equinox's Embedding of 20,000 × 256 and two Linear under vmap, 64 tokens",
        "equinox_embedding",
        {"batch": 8, "steps": 64, "vocabulary": 20_000, "width": 256},
        {"steps": 8, "vocabulary": 200, "width": 16},
        peers=IN_PYTORCH,
    ),
    "stacked": Model(
        "12 stacked layers of 256, each indexed in fori_loop, 64 tokens",
        "stacked",
        {"batch": 4, "steps": 64, "vocabulary": 1_000, "width": 256, "depth": 12},
        {"steps": 16, "vocabulary": 50, "width": 16, "depth": 3},
    ),
}
