"""Summaries as the scripts write them, cut short."""


def around(mean, half=1.0):
    return {"mean": mean, "low": mean - half, "high": mean + half}


FORGOTTEN = {"forgetting_mean": 1.5, "forgetting_best5": 2.5, "forgetting_max": 9.0}
SUMMARIES = {
    "search": {
        "best_perplexity": 42.125,
        "after_warmup": FORGOTTEN | {"err2_mean": 47.0, "tau_within_epoch": 0.4},
        "parameters": 30900,
        "seconds": 3723,
        "epochs": 6,
        "configuration": {"strength": 10.0, "rnn": {"nodes": 12}},
        "command": "python -m experiments.search",
        "versions": {"jax": "0.10.2"},
    },
    "final": {
        "validation_error_rate": 0.38,
        "test_error_rate": 0.405,
        "parameters": 24318,
        "architecture": {"space": "micro_cnn"},
        "epochs": 2,
    },
    "grid": {
        "task": {"name": "nas_bench_201", "error": "error rate"},
        "arms": [
            {
                "name": "plain",
                "runs": 2,
                "numbers": {
                    "after_warmup/err2_mean": around(0.6, 0.01),
                    "error rate/kendall": {"mean": 0.5, "low": None, "high": None},
                    "cells/test": around(0.5, 0.01),
                },
                "differences": {},
            },
            {
                "name": "WPL",
                "runs": 2,
                "numbers": {"after_warmup/err2_mean": around(0.61, 0.01)},
                "differences": {"after_warmup/err2_mean": around(0.01, 0.02)},
            },
        ],
        "cells": {"others": [{"name": "enas", "runs": 3, "cells/test": around(0.52, 0.01)}]},
    },
    "two_models": {
        "conditions": [
            {
                "name": "A converged",
                "before_a": around(0.968, 0.004),
                "plain": {"final_a": around(0.525, 0.2), "final_b": around(0.944, 0.01)},
                "WPL": {
                    "strength": 100.0,
                    "final_a": around(0.97, 0.01),
                    "final_b": around(0.95, 0.01),
                },
                "differences": {"WPL − plain": {"a": around(0.445, 0.2), "b": around(0.006, 0.01)}},
            }
        ],
        "configuration": {"eval_every": 50},
    },
    "importances": {
        "scenarios": {
            "one head": {
                "arms": {
                    "SI": {
                        "strength": 10.0,
                        "first": around(0.9, 0.01),
                        "last": around(0.8, 0.01),
                        "mean": around(0.85, 0.01),
                        "forgotten": around(0.1, 0.01),
                        "over_anchor": around(0.005, 0.01),
                    }
                }
            }
        }
    },
    "other": {"score": {"here": 0.5}, "words": "many"},
}
