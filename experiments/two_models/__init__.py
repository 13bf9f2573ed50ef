"""Two models that share weights (figures 1 and 2): settings, training, report."""
