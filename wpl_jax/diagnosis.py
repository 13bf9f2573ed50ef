"""What the plasticity term is doing in a training loop, and what is wrong where it does nothing."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from wpl_jax.modules import parameters
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


class Diagnosis(NamedTuple):
    """What :func:`diagnose` finds; printed, it is a text with warnings and remedies.

    ``c``, of one weight, is ``learning_rate * strength * F``: the part of its distance to the
    anchor that one step of gradient descent on the plasticity term takes back. What is not finite
    is counted, and left out of all other numbers. Of a stacked state, of several models, each array
    has the models' axes in front.

    Attributes:
      consolidations: int32, how often ``consolidate`` has set the anchor; 0: nothing is protected.
      rejected: int32, Fisher entries that were not finite or negative, in all calls together.
      count: int32, updates so far, at which schedules are read.
      implicit: bool, whether the term is applied as a proximal step.
      misplaced: bool, whether the term sits where it does not pull towards the anchor, as far as
        the state of a chain tells: a proximal term before another transformation, an additive one
      last. not_finite: int32 counts of entries that are NaN or infinite, by what they are in.
      strength: that of the last update, and before it of the first.
      learning_rate: what it is at this count.
      max_fisher: the largest entry of ``F``.
      stability: the largest ``c``. Plain gradient descent on the additive form diverges above 2,
        heavy-ball momentum ``m`` makes that ``2 (1 + m)``. The implicit form never diverges.
      frozen: the share, from 0 to 1, of the weights under the transformation for which ``c >= 1``:
        a step of the additive form takes back all of a displacement, or overshoots; of the
        implicit form, ``c / (1 + c)`` of it, half or more.
      loss: the plasticity term, ``strength/2 * sum F (params - anchor)**2``.
      gradient_ratio: the norm of its gradient over the norm of the loss's, on the weights under the
        transformation; infinite where the latter is 0; None without ``grads``.
    """

    consolidations: jax.Array
    rejected: jax.Array
    count: jax.Array  # type: ignore[assignment]
    implicit: jax.Array
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
        """What is likely to be a mistake, each with its remedy; outside of ``jit``."""
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
                f"not finite: {', '.join(wrong)}; the numbers here leave them out. Look for where "
                "training diverged: a learning rate too large, or a logarithm of 0"
            )
        if self.misplaced:
            found.append(
                "something follows the proximal term, which has to be last in its chain: it takes "
                "its updates for the step itself, and where they are turned into one later it "
                "pushes away from the anchor; optax.chain(optimizer, proximal_plasticity(...))"
                if self.implicit
                else "the additive term is last in its chain, where it is added to the step, not "
                "to the gradient, and pushes away from the anchor; "
                "optax.chain(add_plasticity(...), optimizer)"
            )
        if self.consolidations == 0:
            found.append(
                "never consolidated, so that nothing is protected: after a model has been trained, "
                "call opt_state = wpl_jax.consolidate(opt_state, params, fisher) and go on with "
                "what it returns (weight_plasticity: update with consolidate=True)"
            )
        elif self.max_fisher == 0:
            found.append(
                "the Fisher is all zero, so that nothing is protected: was it flushed, masked "
                "away, or computed where the model does not depend on these parameters?"
            )
        elif self.strength == 0 and not self.not_finite["the strength"]:
            found.append(
                f"the strength is 0 after {self.count} updates, so that nothing is protected"
            )
        elif self.strength < 0:
            found.append(
                f"the strength is {self.strength:.3g}, and what is negative pushes away from the "
                "anchor: keep a learned or scheduled one at 0 or above, as with jax.nn.softplus"
            )
        elif self.stability > _UNSTABLE and not self.implicit:
            found.append(
                f"stability number {self.stability:.3g} > 2: add_plasticity diverges under plain "
                "gradient descent; use proximal_plasticity, which is stable at any strength, or "
                f"strength <= {_UNSTABLE * self.strength / self.stability:.3g}"
            )
        elif self.learning_rate > 0 and self.strength > 0 and self.stability < _WEAK:
            found.append(
                f"the Fisher's largest entry is {self.max_fisher:.3g}, and a step takes back no "
                f"more than {self.stability:.3g} of a displacement: is nll that of one example, a "
                "sum and not a mean over its positions? If so, raise the strength, to at most "
                f"{1 / (self.learning_rate * self.max_fisher):.3g}"
            )
        if self.rejected > 0:
            found.append(
                f"{self.rejected} entries were refused by consolidate: Fisher entries that were "
                "not finite or negative, which count as 0, or parameters that were not finite, "
                "which stay as they were protected before. Look for overflow in nll, or a "
                "logarithm of 0"
            )
        return found

    def __str__(self) -> str:
        """The text, of several models one after another; inside ``jit``, the tuple."""
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(self)):
            return repr(self)
        if self.count.ndim:
            return "\n\n".join(f"{name}\n{diagnosis}" for name, diagnosis in self._models())
        lines = [
            f"consolidations: {self.consolidations}, updates: {self.count}",
            f"strength {self.strength:.3g}, learning rate {self.learning_rate:.3g}, "
            f"largest Fisher entry {self.max_fisher:.3g}",
            f"stability number {self.stability:.3g} "
            f"({'implicit form: any' if self.implicit else 'additive form: at most 2'})",
            f"{self.frozen:.1%} of the weights frozen (stability number of their own >= 1)",
            f"plasticity term {self.loss:.3g}",
        ]
        if self.gradient_ratio is not None:
            lines[-1] += f", its gradient {self.gradient_ratio:.3g} times the loss's"
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

    Args:
      opt_state: any tree that holds one :class:`wpl_jax.PlasticityState`, as in
        :func:`wpl_jax.consolidate`.
      params: the weights, whole, as in :func:`wpl_jax.consolidate`.
      learning_rate: that of the optimiser, or what the implicit form was given; a schedule is read
        at the state's count. After a preconditioner such as Adam steps are not those of gradient
        descent, and only the implicit form has the numbers ``stability`` and ``frozen``.
      grads: the gradient of the loss alone, a tree like ``params``.

    If it is the Fisher that is in doubt, :func:`wpl_jax.check_fisher` compares it with
    ``vmap(grad)`` on a few examples of your own loss.

    Returns:
      A :class:`Diagnosis`: arrays, so that it can be computed under ``jit``, kept and logged.
      ``print`` it for a text; ``.warnings()`` is what that warns of.

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
      stability number 25 (additive form: at most 2)
      50.0% of the weights frozen (stability number of their own >= 1)
      plasticity term 0
      warning: stability number 25 > 2: add_plasticity diverges under plain gradient descent; use \
proximal_plasticity, which is stable at any strength, or strength <= 8
    """
    check_nonnegative(learning_rate=learning_rate)
    path, state = find(opt_state)
    params = align("params", parameters(params, opt_state), state.anchor)
    if grads is not None:
        aligned = align("grads", grads, state.anchor, optional=True)
        grads = [g for g in aligned if g is not None]

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
            frozen += jnp.sum(rate * strength * fisher >= 1)
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
            implicit=jnp.array(isinstance(state, ProximalState)),
            misplaced=jnp.array(_is_misplaced(opt_state, path, state)),
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


def _is_misplaced(opt_state, path, state):
    """Whether a term is not where it belongs in the chain that it sits in.

    The state of a chain is a tuple of states, which are tuples themselves. Those further out are
    not looked at: a tuple may also hold the states of two optimisers.
    """
    before = after = False
    for key in path:
        if type(opt_state) is tuple:
            before = any(isinstance(s, tuple) for s in opt_state[: key.idx])
            after = any(isinstance(s, tuple) for s in opt_state[key.idx + 1 :])
        opt_state = _child(opt_state, key)
        if opt_state is None:
            break
    return after if isinstance(state, ProximalState) else before and not after


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
    return sum((jnp.sum(~jnp.isfinite(leaf)) for leaf in leaves), start=jnp.zeros([], jnp.int32))


def _squares(leaf):
    return jnp.sum(jnp.abs(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))) ** 2)
