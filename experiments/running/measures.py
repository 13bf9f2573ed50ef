"""What is measured in every epoch of a search: names in metrics.jsonl, and headings."""

FORGETTING = {
    "forgetting_mean": "mean",
    "forgetting_best5": "best 5",
    "forgetting_max": "max",
}
"""Differences of errors."""
ERRORS = {"err1_mean": "err1", "err2_mean": "err2", "err2_median": "err2, median"}
OTHERS = {"tau_within_epoch": "τ within the epoch", "reward": "reward"}
