"""Searches with and without plasticity, compared (figures 3 to 5): settings, report."""
