"""Weight-sharing architecture search (ENAS), with plasticity: one jitted step for a whole run.

An epoch trains architectures one after another on shared parameters, each on its own batches, and
then the controller that samples them. After an architecture has trained, its validation error is
``err1``; at the end of the epoch it is ``err2``. The difference is what the architectures after it
made the shared parameters forget (section 3.2).

With plasticity, after each architecture its squared validation gradient enters the Fisher and the
anchor moves to its weights; the architectures after it are held back by it.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from wpl_jax.fisher import squared_batch_gradient
from wpl_jax.plasticity import consolidate, flush, weight_plasticity
from wpl_jax.search.controller import Controller, reinforce_loss, update_baseline
from wpl_jax.spaces import Space
from wpl_jax.trees import is_hidden

__all__ = ["Data", "Epoch", "Progress", "Search", "SearchConfig", "SearchState"]


class Data(NamedTuple):
    """What a search reads, on the device, in the form that the space's ``batch`` takes."""

    train: chex.ArrayTree
    validation: chex.ArrayTree


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """Settings of a search; the defaults are those of the paper's recurrent search."""

    strategy: Literal["reinforce", "random"] = "reinforce"
    """Who is sampled: by the controller, or uniformly (random search with weight sharing)."""
    architectures: int = 60
    """Architectures trained in an epoch."""
    batches: int = 7
    """Training batches of each."""
    chunk: int = 60
    """Architectures trained in one call of the compiled step; divides ``architectures``."""
    eval_batches: int = 8
    """Validation batches behind err1 and err2, the same for all."""
    at_once: int = 1
    """Architectures evaluated at once, outside of training: 1 is fastest on a CPU."""

    controller_steps: int = 2_000
    """Steps of REINFORCE at the end of an epoch."""
    controller_samples: int = 1
    """Architectures in each, rewarded on one validation batch drawn for all of them."""
    controller_learning_rate: float = 3.5e-4
    """Of Adam."""
    entropy_weight: float = 1e-4
    """Times the entropy of the controller's distribution, added to the reward."""
    baseline_decay: float = 0.95
    """Of the moving average of rewards."""

    warmup_epochs: int = 5
    """Epochs without plasticity at the start."""
    flush_every: int = 3
    """Epochs after which the Fisher is set to zero; 0 for never."""
    fisher_decay: float = 0.1
    """What is left of the Fisher after each architecture, the paper's 1 - eta."""
    fisher_max_norm: float | None = 10.0
    """What the norm of each parameter's Fisher is clipped at."""
    protect: Literal["edges", "all"] = "edges"
    """The parameters protected: those that only some architectures use, or all."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("architectures", "batches", "chunk", "eval_batches", "at_once"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("controller_steps", "controller_samples"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup_epochs", "flush_every", "entropy_weight"):
            self._check(name, getattr(self, name) >= 0, ">= 0")
        for name in ("fisher_decay", "baseline_decay"):
            self._check(name, 0 <= getattr(self, name) < 1, ">= 0 and < 1")
        self._check("strategy", self.strategy in ("reinforce", "random"), "reinforce or random")
        self._check("protect", self.protect in ("edges", "all"), "edges or all")
        self._check(
            "chunk",
            self.architectures % self.chunk == 0,
            f"a divisor of architectures ({self.architectures})",
        )

    def _check(self, name, holds, wanted):
        if not holds:
            raise ValueError(f"{name} must be {wanted}, got {getattr(self, name)!r}")


class SearchState(NamedTuple):
    """All that a search knows; saved and restored, it goes on bit for bit."""

    params: chex.ArrayTree
    opt_state: chex.ArrayTree
    controller_params: chex.ArrayTree
    controller_opt_state: chex.ArrayTree
    baseline: jax.Array  # shape=(), float32
    key: jax.Array  # shape=(), a typed key
    trained: jax.Array  # shape=(), int32: architectures, since the start
    skipped: jax.Array  # shape=(), int32: training steps whose loss or gradient was not finite
    streak: jax.Array  # shape=(), int32: how many of the last steps were, in a row
    actions: jax.Array  # shape=(architectures, decisions), int32: this epoch's
    err1: jax.Array  # shape=(architectures,), float32
    loss: jax.Array  # shape=(architectures,), float32: mean over an architecture's batches


class Epoch(NamedTuple):
    """What an epoch came to."""

    actions: jax.Array  # shape=(architectures, decisions), int32
    loss: jax.Array  # shape=(architectures,), float32: mean training loss
    err1: jax.Array  # shape=(architectures,), float32: validation error after its own training
    err2: jax.Array  # shape=(architectures,), float32: validation error at the end of the epoch
    reward: jax.Array  # shape=(controller_steps,), float32: mean over the samples
    entropy: jax.Array  # shape=(controller_steps,), float32, nats


class Progress(NamedTuple):
    """What one call of :meth:`Search.step` reports."""

    loss: jax.Array  # shape=(chunk,), float32
    err1: jax.Array  # shape=(chunk,), float32
    finished: jax.Array  # shape=(), bool: whether the call finished an epoch
    epoch: Epoch  # zeros if it did not


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A search as pure functions of its state.

    Attributes:
      space: the architectures, what they share, and how they are trained and measured.
      config: settings.
      optimizer: of the shared parameters; its schedules count training steps, of which an epoch
        has ``config.architectures * config.batches``.
      strength: plasticity's, a number or a schedule; the number 0 does without.
      learning_rate: where given, plasticity is applied implicitly, with this learning rate (see
        :func:`wpl_jax.proximal_plasticity`), and otherwise added to the gradient.

    Example:
      >>> import jax, optax
      >>> from wpl_jax.search import Data, Search, SearchConfig
      >>> from wpl_jax.spaces.rnn import RNN
      >>> config = SearchConfig(
      ...     architectures=2, batches=2, chunk=1, eval_batches=1, controller_steps=2
      ... )
      >>> space = RNN(vocabulary=9, nodes=3, units=4)
      >>> search = Search(space, config, optax.sgd(1.0), strength=60.0)
      >>> text = jax.random.randint(jax.random.key(0), (5, 2, 4), 0, 9)  # windows, batch, time + 1
      >>> step = jax.jit(search.step, donate_argnums=0)
      >>> state = search.init(jax.random.key(1))
      >>> for _ in range(2):
      ...     state, progress = step(state, Data(train=text, validation=text))
      >>> bool(progress.finished), progress.epoch.err2.shape
      (True, (2,))
    """

    space: Space
    config: SearchConfig
    optimizer: optax.GradientTransformation
    strength: optax.ScalarOrSchedule = 0.0
    learning_rate: optax.ScalarOrSchedule | None = None

    def init(self, key: jax.Array) -> SearchState:
        """The state at the start."""
        params_key, controller_key, key = jax.random.split(key, 3)
        config, controller = self.config, self._controller()
        params = self.space.init(params_key)
        actions = jnp.zeros((config.architectures, len(self.space.decisions)), jnp.int32)
        controller_params = controller.init(controller_key, actions[:1], method="log_prob")
        zeros = jnp.zeros(config.architectures)
        return SearchState(
            params=params,
            opt_state=self._tx().init(params),
            controller_params=controller_params,
            controller_opt_state=self._controller_tx().init(controller_params),
            baseline=jnp.array(jnp.nan, jnp.float32),
            key=key,
            trained=jnp.zeros([], jnp.int32),
            skipped=jnp.zeros([], jnp.int32),
            streak=jnp.zeros([], jnp.int32),
            actions=actions,
            err1=zeros,
            loss=jnp.copy(zeros),  # every leaf is its own buffer, to be donated
        )

    def step(self, state: SearchState, data: Data) -> tuple[SearchState, Progress]:
        """Train the next ``chunk`` architectures and, after the last of an epoch, finish it."""

        def train(state, _):
            state = self._train(state, data)
            place = (state.trained - 1) % self.config.architectures
            return state, (state.loss[place], state.err1[place])

        state, (loss, err1) = jax.lax.scan(train, state, length=self.config.chunk)
        finished = state.trained % self.config.architectures == 0
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(self._finish, state, data)[1])
        state, epoch = jax.lax.cond(
            finished, lambda s: self._finish(s, data), lambda s: (s, nothing), state
        )
        return state, Progress(loss, err1, finished, epoch)

    def rank(
        self, state: SearchState, validation: chex.ArrayTree, key: jax.Array, n: int, batches: int
    ) -> tuple[jax.Array, jax.Array]:
        """Sample ``n`` architectures as the strategy does, and order them by validation error.

        Returns:
          Actions, int32 [n, decisions], and errors on the first ``batches`` batches, float [n],
          the best first.
        """
        actions = self._sample(state, key, n)
        errors = self._errors(state.params, validation, jnp.arange(batches), actions)
        order = jnp.argsort(errors)  # NaN comes last
        return actions[order], errors[order]

    def evaluate(
        self, params: chex.ArrayTree, actions: jax.Array, split: chex.ArrayTree, batches: int
    ) -> jax.Array:
        """The error of one architecture on the first ``batches`` batches of a split."""
        return self._evaluate(params, split, jnp.arange(batches), actions)

    def _train(self, state, data):
        """Train the next architecture, measure it, and protect it."""
        config, space, tx = self.config, self.space, self._tx()
        epoch = state.trained // config.architectures
        key = jax.random.fold_in(jax.random.split(state.key)[0], state.trained)
        sample_key, train_key, fisher_key = jax.random.split(key, 3)
        actions = self._sample(state, sample_key, 1)[0]
        architecture = space.decode(actions)
        shared = state.params, state.opt_state
        rows = self._rows(architecture, *shared)
        mask = _take(jax.tree.broadcast(space.mask(architecture), state.params), rows[0])

        def train(carry, i):
            params, opt_state, hidden, skipped, streak = carry
            batch_key, loss_key = jax.random.split(jax.random.fold_in(train_key, i))
            batch = space.batch(data.train, state.trained * config.batches + i, batch_key)
            (loss, hidden), grads = jax.value_and_grad(space.loss, has_aux=True)(
                params, architecture, batch, hidden, loss_key
            )
            finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
            # Outside its mask a step changes nothing: what is not finite has an empty mask.
            updates, opt_state = tx.update(
                grads, opt_state, params, mask=jax.tree.map(lambda m: m & finite, mask)
            )
            params = optax.apply_updates(params, updates)
            hidden = jax.tree.map(lambda h: jnp.where(finite, h, 0), hidden)
            streak = jnp.where(finite, 0, streak + 1)
            return (params, opt_state, hidden, skipped + ~finite, streak), loss

        # Each starts as it will be measured, without another architecture's carry.
        hidden = space.start(space.batch(data.train, 0, train_key))
        (params, opt_state, _, skipped, streak), losses = jax.lax.scan(
            train,
            (*_take(shared, rows), hidden, state.skipped, state.streak),
            jnp.arange(config.batches),
        )
        if self._is_plastic():
            opt_state = jax.lax.cond(
                epoch >= config.warmup_epochs,
                lambda s: self._protect(s, params, architecture, mask, data, fisher_key),
                lambda s: s,
                opt_state,
            )
        place = state.trained % config.architectures
        err1 = self.evaluate(params, actions, data.validation, config.eval_batches)
        params, opt_state = _put(shared, rows, (params, opt_state))
        return state._replace(
            params=params,
            opt_state=opt_state,
            trained=state.trained + 1,
            skipped=skipped,
            streak=streak,
            actions=state.actions.at[place].set(actions),
            err1=state.err1.at[place].set(err1),
            loss=state.loss.at[place].set(losses.mean()),
        )

    def _rows(self, architecture, params, opt_state):
        """The space's ``rows`` of every parameter and of what the optimiser remembers of each."""
        map_params = functools.partial(optax.tree.map_params, self._tx(), is_leaf=is_hidden)
        fits = map_params(
            lambda leaf, param: is_hidden(leaf) or leaf.shape == param.shape,
            opt_state,
            params,
            transform_non_params=lambda _: True,
        )
        if not all(jax.tree.leaves(fits)):  # weights share memory (adafactor's): it needs them all
            return jax.tree.map(lambda _: ..., (params, opt_state))
        rows = jax.tree.broadcast(self.space.rows(architecture), params)
        return rows, map_params(
            lambda leaf, rows: leaf if is_hidden(leaf) else rows,
            opt_state,
            rows,
            transform_non_params=lambda _: ...,
        )

    def _protect(self, opt_state, params, architecture, mask, data, key):
        """Anchor and Fisher of the architecture just trained (section 3.2)."""

        def loss(params, batch):
            return self.space.loss(params, architecture, batch, self.space.start(batch), None)[0]

        step = self._random_step(data.validation, jax.random.split(key)[0])
        batch = self.space.batch(data.validation, step, None)
        fisher = squared_batch_gradient(loss)(params, jax.tree.map(lambda x: x[None], batch))
        if self.config.protect == "edges":
            mask = jax.tree.map(lambda m: False if m is True else m, mask)
        return consolidate(
            opt_state,
            params,
            fisher,
            decay=self.config.fisher_decay,
            mask=mask,
            max_norm=self.config.fisher_max_norm,
        )

    def _finish(self, state, data):
        """The end of an epoch: what was forgotten, and the controller's turn."""
        config = self.config
        steps = jnp.arange(config.eval_batches)
        err2 = self._errors(state.params, data.validation, steps, state.actions)
        epoch = Epoch(state.actions, state.loss, state.err1, err2, jnp.zeros(0), jnp.zeros(0))
        if config.strategy == "reinforce":
            key = jax.random.fold_in(jax.random.split(state.key)[1], state.trained)
            state, (reward, entropy) = jax.lax.scan(
                functools.partial(self._reinforce, data),
                state,
                jax.random.split(key, config.controller_steps),
            )
            epoch = epoch._replace(reward=reward, entropy=entropy)
        if self._is_plastic() and config.flush_every:
            next_epoch = state.trained // config.architectures - config.warmup_epochs
            due = next_epoch % config.flush_every == 0
            state = state._replace(
                opt_state=optax.tree.where(due, flush(state.opt_state), state.opt_state)
            )
        return state, epoch

    def _reinforce(self, data, state, key):
        """One step of the controller."""
        config, controller = self.config, self._controller()
        sample_key, batch_key = jax.random.split(key)
        actions = self._sample(state, sample_key, config.controller_samples)
        step = self._random_step(data.validation, batch_key)
        errors = self._errors(state.params, data.validation, step[None], actions)
        rewards = self.space.reward(errors)

        def loss(controller_params):
            log_probs, entropies = controller.apply(controller_params, actions, method="log_prob")
            return reinforce_loss(
                log_probs, entropies, rewards, baseline, config.entropy_weight
            ), entropies.mean()

        baseline = update_baseline(state.baseline, rewards, config.baseline_decay)
        grads, entropy = jax.grad(loss, has_aux=True)(state.controller_params)
        updates, opt_state = self._controller_tx().update(grads, state.controller_opt_state)
        state = state._replace(
            controller_params=optax.apply_updates(state.controller_params, updates),
            controller_opt_state=opt_state,
            baseline=baseline,
        )
        return state, (rewards.mean(), entropy)

    def _sample(self, state, key, n):
        """Actions of ``n`` architectures, by the strategy."""
        if self.config.strategy == "reinforce":
            controller = self._controller()
            return controller.apply(state.controller_params, key, n, method="sample").actions
        decisions = jnp.array(self.space.decisions)
        return jax.random.randint(key, (n, len(decisions)), 0, decisions[None])

    def _errors(self, params, split, steps, actions):
        """Errors of several architectures, some at once."""
        evaluate = functools.partial(self._evaluate, params, split, steps)
        return jax.lax.map(evaluate, actions, batch_size=min(self.config.at_once, len(actions)))

    def _evaluate(self, params, split, steps, actions):
        """The error of an architecture on the batches numbered ``steps``, one after another."""
        space, architecture = self.space, self.space.decode(actions)

        def score(carry, step):
            batch = space.batch(split, step, None)
            return space.score(params, architecture, batch, carry)[::-1]

        start = space.start(space.batch(split, steps[0], None))
        _, (totals, counts) = jax.lax.scan(score, start, steps)
        return space.error(totals.sum() / counts.sum())

    def _random_step(self, split, key):
        return jax.random.randint(key, (), 0, self.space.num_batches(split))

    def _is_plastic(self):
        return callable(self.strength) or self.strength > 0

    def _tx(self):
        return weight_plasticity(
            self.optimizer, strength=self.strength, learning_rate=self.learning_rate
        )

    def _controller(self):
        return Controller(self.space.decisions)

    def _controller_tx(self):
        return optax.adam(self.config.controller_learning_rate)


def _take(tree, rows):
    """Of each leaf the rows that are an architecture's own."""

    def take(rows, subtree):
        return subtree if rows is ... else jax.tree.map(lambda x: pick(x, rows), subtree)

    def pick(x, rows):
        return x[rows] if rows.ndim == 1 else jax.vmap(pick)(x, rows)

    return jax.tree.map(take, rows, tree)


def _put(tree, rows, own):
    """The tree with an architecture's own rows in their places."""

    def put(rows, x, new):
        if rows is ...:
            return new
        return x.at[rows].set(new) if rows.ndim == 1 else jax.vmap(put)(rows, x, new)

    return jax.tree.map(put, rows, tree, own)
