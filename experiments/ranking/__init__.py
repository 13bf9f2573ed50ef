"""How well a search ranks architectures whose accuracies after full training are known.

- ``measuring``: all architectures of a space on the shared parameters of a search;
- ``truth``: the file of the accuracies;
- ``baselines``: orders that know nothing of the search;
- ``statistics``: how well an order agrees with the truth, with intervals.
"""
