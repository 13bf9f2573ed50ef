"""Look at the plasticity term while training: what it does, and why where it does nothing."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from wpl_jax.modules import parameters, trained_part
from wpl_jax.numbers import widen
from wpl_jax.plasticity.state import ProximalState, find, scalar
from wpl_jax.plasticity.term import (
    ScalarOrSchedule,
    check_nonnegative,
    distance,
    importance,
    value_at,
)
from wpl_jax.trees import align, to_device

__all__ = ["Diagnosis", "diagnose"]

_UNSTABLE = 2.0  # gradient descent multiplies a distance by 1 - c, which beyond here grows
_WEAK = 1e-6  # a million steps to undo a displacement: as good as none
_ADDITIVE_LIMIT = "the additive form is stable up to 2"


class Diagnosis(NamedTuple):
    """What :func:`diagnose` finds. Print it for a text with warnings and remedies.

    For one weight, ``c = learning_rate * strength * F`` is the share of its distance to the anchor
    that one step of gradient descent on the plasticity term takes back. Entries that are not finite
    (NaN or infinite) are counted and left out of all other numbers. If the state is a stack of the
    states of several models, each array has the axes of that stack in front.

    Attributes:
      consolidations: int32, how often ``consolidate`` has set the anchor. At 0 nothing is
        protected.
      rejected: int32, how many entries ``consolidate`` has refused in all its calls, because they
        were negative or not finite.
      count: int32, the number of updates so far, at which schedules are read.
      proximal: bool, whether this is the proximal form of the term, not the additive one.
      misplaced: bool, whether the term is in the wrong place of its ``optax.chain``, so that it
        does not pull towards the anchor: a proximal term before another transformation, or an
        additive term in the last place. What freezes weights, such as ``optax.freeze``, may follow
        either. One without memory, such as ``optax.identity`` or ``keep_params_nonnegative``,
        counts as a transformation, since it cannot be told from ``optax.scale``. Not seen in an
        ``optax.named_chain``, whose state does not keep the order.
      not_finite: int32 counts of the entries that are NaN or infinite, by the array they are in.
      strength: the strength at the last update, or at the first one if there was none yet.
      learning_rate: the learning rate at this count.
      max_fisher: the largest entry of ``F``.
      stability: the stability number, the largest ``c``. Above 2 the additive form diverges under
        plain gradient descent; with heavy-ball momentum ``m`` the limit is ``2 (1 + m)``. The
        proximal form never diverges.
      frozen: the share, from 0 to 1, of weights with ``c >= 1``, among those that the
        transformation covers. For these, a step of the additive form takes back all of a
        displacement or overshoots; a step of the proximal form takes back ``c / (1 + c)`` of it,
        which is half or more.
      loss: the plasticity term, ``strength/2 * sum F (params - anchor)**2``.
      gradient_ratio: the norm of the term's gradient, divided by the norm of the loss's gradient,
        both on the weights that the transformation covers. Infinite if the loss's gradient is 0,
        and None if ``grads`` were not given.
    """

    consolidations: jax.Array
    rejected: jax.Array
    count: jax.Array  # type: ignore[assignment]
    proximal: jax.Array
    misplaced: jax.Array
    not_finite: dict[str, jax.Array]
    strength: jax.Array
    learning_rate: jax.Array
    max_fisher: jax.Array
    stability: jax.Array
    frozen: jax.Array
    loss: jax.Array
    gradient_ratio: jax.Array | None

    def warnings(self) -> list[str]:
        """Likely mistakes, each with its remedy. Not to be called inside ``jit``."""
        if not self.count.ndim:
            return self._warnings()
        found = []
        for name, diagnosis in self._models():
            found += [f"{name}: {warning}" for warning in diagnosis._warnings()]
        return found

    def _warnings(self):
        found = []
        wrong = [f"{n} of {name}" for name, n in self.not_finite.items() if n > 0]
        if wrong:
            found.append(
                f"not finite: {', '.join(wrong)}; all numbers here leave these entries out. "
                "Training has probably diverged: lower the learning rate, or look for the "
                "logarithm of 0"
            )
        if self.misplaced:
            found.append(
                "something follows the proximal term, which has to be last in its chain. The term "
                "expects the step itself; before an optimiser it gets the gradient, and pushes "
                "away from the anchor. Write optax.chain(optimizer, proximal_plasticity(...))"
                if self.proximal
                else "the additive term is last in its chain, so that it is added to the step and "
                "not to the gradient, and pushes away from the anchor. Write "
                "optax.chain(add_plasticity(...), optimizer)"
            )
        if self.consolidations == 0:
            found.append(
                "never consolidated, so nothing is protected. After a model has been trained, call "
                "opt_state = wpl_jax.consolidate(opt_state, params, fisher) and continue with the "
                "opt_state that it returns. With weight_plasticity, pass consolidate=True to the "
                "model's last update instead"
            )
        elif self.max_fisher == 0:
            found.append(
                "the Fisher is all zero, so nothing is protected. Was it flushed, excluded by a "
                "mask, or computed from a loss that does not depend on these parameters?"
            )
        elif self.strength == 0 and not self.not_finite["the strength"]:
            found.append(
                f"the strength is 0 after {self.count} updates, so nothing is protected. Give a "
                "positive strength, or look at its schedule"
            )
        elif self.strength < 0:
            found.append(
                f"the strength is {self.strength:.3g}, and a negative strength pushes away from "
                "the anchor. Keep a learned or scheduled strength at 0 or above, for example with "
                "jax.nn.softplus"
            )
        elif self.stability > _UNSTABLE and not self.proximal:
            found.append(
                f"stability number {self.stability:.3g} > 2: add_plasticity diverges under plain "
                "gradient descent. Use proximal_plasticity, which is stable at any strength, or a "
                f"strength <= {_UNSTABLE * self.strength / self.stability:.3g}"
            )
        elif self.learning_rate > 0 and self.strength > 0 and self.stability < _WEAK:
            found.append(
                "the term is too weak to matter: the Fisher's largest entry is "
                f"{self.max_fisher:.3g}, and one step takes back at most {self.stability:.3g} of a "
                "displacement. Is nll the loss of one example, and the sum, not the mean over its "
                "positions (tokens, pixels)? If it is, raise the strength, to at most "
                f"{1 / (self.learning_rate * self.max_fisher):.3g}"
            )
        if self.rejected > 0:
            found.append(
                f"consolidate has refused {self.rejected} "
                f"{'entry' if self.rejected == 1 else 'entries'}: a Fisher entry that is negative "
                "or not finite counts as 0, and where a parameter is not finite its anchor and "
                "Fisher stay as they were. Look for overflow in nll, or for the logarithm of 0"
            )
        return found

    def __str__(self) -> str:
        """A text, one model after another. Inside ``jit``, that of a plain tuple."""
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(self)):
            return repr(self)
        if self.count.ndim:
            return "\n\n".join(f"{name}\n{diagnosis}" for name, diagnosis in self._models())
        lines = [
            f"consolidations: {self.consolidations}, updates: {self.count}",
            f"strength {self.strength:.3g}, learning rate {self.learning_rate:.3g}, "
            f"largest Fisher entry {self.max_fisher:.3g}",
            f"stability number {self.stability:.3g} ("
            + ("the proximal form is stable at any" if self.proximal else _ADDITIVE_LIMIT)
            + ")",
            f"{self.frozen:.1%} of the weights frozen (a step takes back half or more of what they "
            "have moved)",
            f"plasticity term {self.loss:.3g}",
        ]
        if self.gradient_ratio is not None:
            lines[-1] += (
                f", its gradient {self.gradient_ratio:.3g} times as long as that of the loss"
            )
        return "\n".join(lines + [f"warning: {warning}" for warning in self._warnings()])

    def _models(self):
        here = jax.device_get(self)  # of a mesh, from wherever the models are
        for index in np.ndindex(self.count.shape):
            name = f"model {', '.join(map(str, index))}"
            yield name, jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index]), here)


def diagnose(
    opt_state: chex.ArrayTree,
    params: chex.ArrayTree,
    learning_rate: ScalarOrSchedule,
    grads: chex.ArrayTree | None = None,
) -> Diagnosis:
    """Look at the plasticity term between two steps: does it pull, too weakly, or too strongly?

    If you doubt the Fisher itself, :func:`wpl_jax.check_fisher` compares it with ``vmap(grad)`` on
    a few examples of your own loss.

    Args:
      opt_state: any tree that holds one :class:`wpl_jax.PlasticityState`, as in
        :func:`wpl_jax.consolidate`.
      params: the whole tree of weights, as in :func:`wpl_jax.consolidate`.
      learning_rate: the learning rate of the optimiser, or for the proximal form the one that
        :func:`wpl_jax.proximal_plasticity` was given. A schedule is read at the state's count.
        ``stability`` and ``frozen`` describe steps of gradient descent. After a preconditioner such
        as Adam they hold for the proximal form only.
      grads: the gradient of the loss without the term, a tree like ``params``.

    Returns:
      A :class:`Diagnosis`, whose fields are arrays, so that it can be computed under ``jit`` and
      logged. ``print`` it for a text; ``.warnings()`` gives the warnings alone.

    Raises:
      ValueError: as :func:`wpl_jax.plasticity_loss`, and for ``grads`` unlike ``params``.

    Example:
      >>> import jax.numpy as jnp, optax, wpl_jax
      >>> tx = optax.chain(wpl_jax.add_plasticity(100.0), optax.sgd(0.5))
      >>> params = jnp.array([1.0, 2.0])
      >>> opt_state = wpl_jax.consolidate(tx.init(params), params, jnp.array([0.5, 0.0]))
      >>> print(wpl_jax.diagnose(opt_state, params, learning_rate=0.5))
      consolidations: 1, updates: 0
      strength 100, learning rate 0.5, largest Fisher entry 0.5
      stability number 25 (the additive form is stable up to 2)
      50.0% of the weights frozen (a step takes back half or more of what they have moved)
      plasticity term 0
      warning: stability number 25 > 2: add_plasticity diverges under plain gradient descent. Use \
proximal_plasticity, which is stable at any strength, or a strength <= 8
    """
    check_nonnegative(learning_rate=learning_rate)
    path, state = find(opt_state)
    whole = jax.tree.structure(params)
    if grads is not None:
        grads = trained_part(grads, params, opt_state)
        aligned = align("grads", grads, state.anchor, optional=True)
        grads = [g for g in aligned if g is not None]
    params = align("params", parameters(params, opt_state), state.anchor)

    def of_one_model(params, grads, anchors, fishers, consolidations, rejected, count, strength):
        rate = jnp.asarray(value_at(learning_rate, count), float)
        not_finite = {
            "the parameters": params,
            "the anchor": anchors,
            "the Fisher": fishers,
            "the strength": [strength],
            "the learning rate": [rate],
        } | ({} if grads is None else {"the gradients": grads})
        not_finite = {name: _not_finite(leaves) for name, leaves in not_finite.items()}
        strength, rate, *fishers = map(_finite, (strength, rate, *fishers))
        distances = [
            _finite(distance(_finite(p), _finite(a))) for p, a in zip(params, anchors, strict=True)
        ]
        max_fisher = jnp.zeros([])
        frozen, total, loss, pull = jnp.zeros([]), 0, jnp.zeros([]), jnp.zeros([])
        for fisher, d in zip(fishers, distances, strict=True):
            max_fisher = jnp.maximum(max_fisher, jnp.max(fisher, initial=0))
            frozen += jnp.sum(rate * strength * fisher >= 1, dtype=frozen.dtype)
            total += fisher.size
            loss += strength / 2 * jnp.sum(fisher * jnp.abs(d) ** 2)
            pull += _squares(strength * (fisher * d))
        ratio = None
        if grads is not None:
            own = sum(map(_squares, map(_finite, grads)), start=jnp.zeros([]))
            ratio = jnp.sqrt(pull) / jnp.sqrt(jnp.where(own > 0, own, 1))
            ratio = jnp.where((own > 0) | (pull == 0), ratio, jnp.inf)
        return Diagnosis(
            consolidations=consolidations,
            rejected=rejected,
            count=count,
            proximal=jnp.array(isinstance(state, ProximalState)),
            misplaced=jnp.array(_is_misplaced(opt_state, path, state, whole)),
            not_finite=not_finite,
            strength=strength,
            learning_rate=rate,
            max_fisher=max_fisher,
            stability=rate * strength * max_fisher,
            frozen=frozen / max(total, 1),
            loss=loss,
            gradient_ratio=ratio,
        )

    counters = [
        scalar(c) for c in (state.consolidations, state.rejected, state.count, state.last_strength)
    ]
    for _ in range(counters[0].ndim):
        of_one_model = jax.vmap(of_one_model)
    return of_one_model(
        list(map(to_device, params)),
        grads,
        list(map(to_device, jax.tree.leaves(state.anchor))),
        list(map(importance, jax.tree.leaves(state.fisher))),
        *counters,
    )


def _is_misplaced(opt_state, path, state, params):
    """Whether a term is in the wrong place of the chains that it sits in.

    The state of a chain is a tuple of states, which are tuples themselves. A tuple around the
    term's own chain may be another chain, or hold the states of several optimisers, or what has the
    structure of the parameters.
    """
    chains: list[tuple[list, list]] = [([], [])]
    for key in path:
        if type(opt_state) is tuple:
            sides = opt_state[: key.idx], opt_state[key.idx + 1 :]
            before, after = (_acting(side, params) for side in sides)
            chains.append((before, after))
        opt_state = _child(opt_state, key)
        if opt_state is None:
            break
    before, after = chains[-1]
    around = [s for _, others in chains[:-1] for s in others]
    if isinstance(state, ProximalState):
        return bool(after) or any(isinstance(s, optax.EmptyState) for s in around)
    # A whole optimiser is itself a chain. Anything else before the term may be a clipping.
    late = any(type(s) is tuple for s in before) or (bool(before) and not around)
    return late and not after


def _acting(nodes, params):
    """Of what is in a tuple, states of transformations that do more than look on, or select."""

    def acts(state):
        if isinstance(state, optax.MonitorState | optax.SnapshotState):
            return False
        if jax.tree.structure(state) == params:
            return False
        if type(state) is tuple and state:  # a chain's, if it is of states
            return any(map(acts, state))
        has_memory = jax.tree.leaves(state, is_leaf=lambda n: type(n) is tuple)
        return isinstance(state, optax.EmptyState) or (isinstance(state, tuple) and has_memory)

    return list(filter(acts, nodes))


def _child(tree, key):
    """What lies at one key of a path; None where a container names its children otherwise."""
    match key:
        case jax.tree_util.SequenceKey(idx=i) | jax.tree_util.DictKey(key=i):
            return tree[i]
        case jax.tree_util.GetAttrKey(name=name):
            return getattr(tree, name, None)
    return None


def _finite(leaf):
    return jnp.where(jnp.isfinite(leaf), leaf, 0)


def _not_finite(leaves):
    return sum(
        (jnp.sum(~jnp.isfinite(leaf), dtype=jnp.int32) for leaf in leaves),
        start=jnp.zeros([], jnp.int32),
    )


def _squares(leaf):
    return jnp.sum(jnp.abs(widen(leaf)) ** 2)
