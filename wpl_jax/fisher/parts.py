"""Parameters that have to be computed together, as parts; their uses of one route, as clusters."""

import dataclasses
from typing import Any

from wpl_jax.fisher.reading import Reading
from wpl_jax.fisher.routes import FEW_POSITIONS
from wpl_jax.fisher.selections import disjoint
from wpl_jax.fisher.uses import Product, Rows, Use


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Uses of one selection in one form, whose squares go back to parameters as they are."""

    uses: tuple[Use, ...]

    @property
    def numbers(self) -> list[int]:
        """Of the parameters."""
        return sorted(self.uses[0].value.boxes)

    @property
    def positions(self) -> int:
        """At how many an example uses the selection."""
        return sum(use.layout.positions for use in self.uses)

    @property
    def flipped(self) -> bool:
        """Whether its per-example products are taken as ``D^T A``."""
        if self.route != "per-example products":
            return False
        _, features_in, features_out = self.uses[0].layout.shape
        return features_in > features_out

    @property
    def route(self) -> str:
        """The name of one of the routes of :mod:`wpl_jax.fisher.plan`."""
        if isinstance(self.uses[0].layout, Rows):
            return self.uses[0].layout.name
        if self.positions == 1:
            return "squared operands"
        return "outer products" if self.positions <= FEW_POSITIONS else "per-example products"

    def __str__(self) -> str:
        """The route, with how many positions there are."""
        layout = self.uses[0].layout
        patches = " of patches" if isinstance(layout, Product) and layout.patches else ""
        if isinstance(layout, Rows) or self.route == "squared operands":
            return f"{self.route}{patches}"
        return f"{self.route} of {self.positions} positions{patches}"


@dataclasses.dataclass(frozen=True)
class Part:
    """Parameters that share uses, by their places in the tree, and are computed together."""

    leaves: tuple[int, ...]
    uses: tuple[Use, ...]
    marked: tuple[int, ...]  # numbers of bases whose gradient is left to JAX (see reading)
    clusters: tuple[Cluster, ...]  # none: gradients are put together for each example
    own: bool  # whether all bases are parameters

    @property
    def direct(self) -> bool:
        """Whether JAX gives the gradient of a parameter itself, and nothing is to be added."""
        return not self.uses and len(self.leaves) == len(self.marked) == 1 and self.own


def parts_of(reading: Reading) -> tuple[Part, ...]:
    """Parameters that share uses, or functions of parameters, belong together."""
    members: list[tuple[frozenset[int], list[Use], list[int]]] = []

    def join(leaves, uses, marked):
        nonlocal members
        for part in [part for part in members if part[0] & leaves]:
            members.remove(part)
            leaves, uses, marked = leaves | part[0], part[1] + uses, part[2] + marked
        members.append((leaves, uses, marked))

    def sources(numbers):
        return frozenset().union(*(reading.sources[number] for number in numbers))

    for use in reading.uses:
        join(sources(use.value.boxes), [use], [])
    for number in reading.marked:
        join(sources([number]), [], [number])
    parts = []
    for leaves, uses, marked in members:
        numbers = {*marked, *(number for use in uses for number in use.value.boxes)}
        own = numbers <= set(reading.parameters)
        clusters = _clusters(uses) if own and not marked else ()
        parts.append(Part(tuple(sorted(leaves)), tuple(uses), tuple(marked), clusters, own))
    return tuple(parts)


def _clusters(uses):
    """The uses by selection and form, if all squares go back to parameters on their own."""
    alike: dict[Any, list[Use]] = {}
    for use in uses:
        alike.setdefault((use.value.key, use.layout.key), []).append(use)
    clusters = tuple(Cluster(tuple(of_one)) for of_one in alike.values())
    # A selection with an entry for each turn of a loop has a gradient for each turn.
    added = all(len(c.uses) == 1 or not c.uses[0].value.mapped for c in clusters)
    simple = added and disjoint([cluster.uses[0].value.boxes for cluster in clusters])
    return clusters if simple else ()
