"""Weight-sharing architecture search (ENAS), with plasticity: one jitted step for a whole run.

An epoch trains architectures one after another on shared parameters, each on its own batches, and
then the controller that samples them. After an architecture has trained, its validation error is
``err1``; at the end of the epoch it is ``err2``. The difference is what the architectures after it
made the shared parameters forget (section 3.2).

With plasticity, after each architecture its squared validation gradient enters the Fisher and the
anchor moves to its weights; the architectures after it are held back by it.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax

from wpl_jax.fisher import squared_batch_gradient
from wpl_jax.plasticity import consolidate, flush, weight_plasticity
from wpl_jax.search import evaluation
from wpl_jax.search.controller import Controller, reinforce_loss, update_baseline
from wpl_jax.search.settings import SearchConfig
from wpl_jax.search.state import Data, Epoch, Progress, SearchState
from wpl_jax.search.weights import own_rows
from wpl_jax.spaces import Space, rows

__all__ = ["Search"]


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A search as pure functions of its state.

    Attributes:
      space: the architectures, what they share, and how they are trained and measured.
      config: settings.
      optimizer: of the shared parameters; its schedules count training steps, of which an epoch
        has ``config.architectures * config.batches``.
      strength: plasticity's, a number or a schedule; the number 0 does without.
      learning_rate: where given, plasticity is a proximal step with this learning rate (see
        :func:`wpl_jax.proximal_plasticity`); otherwise it is added to the gradient.

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
            state = self._next(state, data)
            place = (state.trained - 1) % self.config.architectures
            return state, (state.loss[place], state.err1[place])

        state, (loss, err1) = jax.lax.scan(train, state, length=self.config.chunk)
        finished = state.trained % self.config.architectures == 0
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(self._finish, state, data)[1])
        state, epoch = jax.lax.cond(
            finished, lambda s: self._finish(s, data), lambda s: (s, nothing), state
        )
        return state, Progress(loss, err1, finished, epoch)

    # --- An epoch, in the order in which it happens: an architecture after another ---------------

    def _next(self, state, data):
        """Sample the next architecture, train it, protect it, and measure it."""
        config, space = self.config, self.space
        epoch = state.trained // config.architectures
        key = jax.random.fold_in(jax.random.split(state.key)[0], state.trained)
        sample_key, train_key, fisher_key = jax.random.split(key, 3)
        actions = self._sample(state, sample_key, 1)[0]
        architecture = space.decode(actions)

        shared = state.params, state.opt_state
        places = own_rows(space, self._tx(), architecture, *shared)
        mask = jax.tree.broadcast(space.mask(architecture), state.params)
        mask = rows.take(mask, places[0])
        own = rows.take(shared, places)
        trained, losses = self._train(own, architecture, mask, state, data.train, train_key)
        (params, opt_state), skipped, streak = trained
        if self._is_plastic():
            opt_state = jax.lax.cond(
                epoch >= config.warmup_epochs,
                lambda s: self._protect(s, params, architecture, mask, data, fisher_key),
                lambda s: s,
                opt_state,
            )
        err1 = self.evaluate(params, actions, data.validation, config.eval_batches)
        params, opt_state = rows.put(shared, places, (params, opt_state))
        place = state.trained % config.architectures
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

    def _train(self, own, architecture, mask, state, split, key):
        """Train an architecture's own weights on its batches, of which it may skip some.

        Returns ``((params, opt_state), skipped, streak)`` and the losses, float [batches].
        """
        config, space, tx = self.config, self.space, self._tx()

        def train(carry, i):
            (params, opt_state), hidden, skipped, streak = carry
            batch_key, loss_key = jax.random.split(jax.random.fold_in(key, i))
            batch = space.batch(split, state.trained * config.batches + i, batch_key)
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
            return ((params, opt_state), hidden, skipped + ~finite, streak), loss

        # Each starts as it will be measured, without another architecture's carry.
        hidden = space.start(space.batch(split, 0, key))
        (own, _, skipped, streak), losses = jax.lax.scan(
            train, (own, hidden, state.skipped, state.streak), jnp.arange(config.batches)
        )
        return (own, skipped, streak), losses

    def _protect(self, opt_state, params, architecture, mask, data, key):
        """Anchor and Fisher of the architecture just trained (section 3.2)."""

        def loss(params, batch):
            return self.space.loss(params, architecture, batch, self.space.start(batch), None)[0]

        step = evaluation.random_step(self.space, data.validation, jax.random.split(key)[0])
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

    # --- The end of an epoch ---------------------------------------------------------------------

    def _finish(self, state, data):
        """What was forgotten in an epoch, the controller's turn, and the Fisher's flush."""
        config = self.config
        steps = jnp.arange(config.eval_batches)
        err2 = self._errors(state.params, data.validation, steps, state.actions)
        epoch = Epoch(state.actions, state.loss, state.err1, err2, jnp.zeros(0), jnp.zeros(0))
        if config.strategy == "reinforce":
            key = jax.random.fold_in(jax.random.split(state.key)[1], state.trained)
            state, (reward, entropy) = jax.lax.scan(
                lambda state, key: self._reinforce(state, data.validation, key),
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

    def _reinforce(self, state, validation, key):
        """One step of the controller."""
        config, controller = self.config, self._controller()
        sample_key, batch_key = jax.random.split(key)
        actions = self._sample(state, sample_key, config.controller_samples)
        step = evaluation.random_step(self.space, validation, batch_key)
        rewards = self.space.reward(self._errors(state.params, validation, step[None], actions))

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

    # --- What is asked of a search at its end ----------------------------------------------------

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
        return evaluation.error(self.space, params, split, jnp.arange(batches), actions)

    # --- What the parts have in common -----------------------------------------------------------

    def _sample(self, state, key, n):
        """Actions of ``n`` architectures, by the strategy."""
        if self.config.strategy == "reinforce":
            controller = self._controller()
            return controller.apply(state.controller_params, key, n, method="sample").actions
        decisions = jnp.array(self.space.decisions)
        return jax.random.randint(key, (n, len(decisions)), 0, decisions[None])

    def _errors(self, params, split, steps, actions):
        return evaluation.errors(self.space, params, split, steps, actions, self.config.at_once)

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
