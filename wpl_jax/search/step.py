"""Weight-sharing architecture search: one jitted step for a whole run.

A search is a space, a sampler and a method. An epoch trains architectures one after another on
shared parameters, each on its own batches. The sampler says which
(:mod:`wpl_jax.search.samplers`), and may learn from their rewards at the end of the epoch, as the
controller of ENAS does. The method says what else happens for the sake of those trained before
(:mod:`wpl_jax.search.methods`): with :class:`~wpl_jax.search.WPL`, for example, the squared
validation gradient of each enters the Fisher and the anchor moves to its weights, so that the
architectures after it are held back.

After an architecture has trained, its validation error is ``err1``; at the end of the epoch it is
``err2``. The difference is what the architectures after it made the shared parameters forget
(section 3.2).
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import optax

from wpl_jax.search import evaluation
from wpl_jax.search.methods import Method, Plain, Trainee
from wpl_jax.search.samplers import Reinforced, Sampler
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
      sampler: who is trained next; by default a controller's choice, as in ENAS.
      method: what keeps architectures from being forgotten; by default nothing.

    Raises:
      ValueError: at construction, if the sampler or the method needs something of the space that
        it does not offer.

    Example:
      >>> import jax, optax
      >>> from wpl_jax.search import WPL, Data, Search, SearchConfig, Uniform
      >>> from wpl_jax.spaces.rnn import RNN
      >>> config = SearchConfig(architectures=2, batches=2, chunk=1, eval_batches=1)
      >>> space = RNN(vocabulary=9, nodes=3, units=4)
      >>> search = Search(space, config, optax.sgd(1.0), Uniform(), WPL(strength=60.0))
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
    sampler: Sampler = Reinforced()
    method: Method = Plain()

    def __post_init__(self) -> None:
        """Refuse a space that lacks what is needed, before anything is compiled."""
        for part in (self.sampler, self.method):
            for name in part.needs:
                if not hasattr(self.space, name):
                    raise ValueError(
                        f"{type(part).__name__} needs {name} of the space, which "
                        f"{type(self.space).__name__} does not have: define it, as "
                        "wpl_jax.spaces.protocol describes it, or choose another"
                    )

    def init(self, key: jax.Array) -> SearchState:
        """The state at the start."""
        params_key, sampler_key, key = jax.random.split(key, 3)
        config = self.config
        params = self.space.init(params_key)
        return SearchState(
            params=params,
            opt_state=self._tx().init(params),
            sampler=self.sampler.init(self.space, sampler_key),
            method=self.method.init(self.space),
            key=key,
            trained=jnp.zeros([], jnp.int32),
            skipped=jnp.zeros([], jnp.int32),
            streak=jnp.zeros([], jnp.int32),
            actions=jnp.zeros((config.architectures, len(self.space.decisions)), jnp.int32),
            err1=jnp.zeros(config.measured),
            loss=jnp.zeros(config.architectures),
        )

    def step(self, state: SearchState, data: Data) -> tuple[SearchState, Progress]:
        """Train the next ``chunk`` architectures and, after the last of an epoch, finish it."""

        def train(state, _):
            state = self._next(state, data)
            place = (state.trained - 1) % self.config.architectures
            return state, (state.loss[place], state.err1[place // self.config.measure_every])

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
        config, space, method = self.config, self.space, self.method
        key = jax.random.fold_in(jax.random.split(state.key)[0], state.trained)
        sample_key, train_key, method_key = jax.random.split(key, 3)
        actions = self._sample(state, sample_key, 1)[0]
        architecture = space.decode(actions)

        shared = state.params, state.opt_state
        places = self._places(architecture, *shared)
        mask = jax.tree.broadcast(space.mask(architecture), state.params)
        mask = rows.take(mask, places[0])
        params, opt_state = rows.take(shared, places)
        trainee = Trainee(actions, architecture, mask, state.trained // config.architectures)
        opt_state = method.before(space, state.method, opt_state, trainee)
        trained, losses = self._train((params, opt_state), trainee, state, data.train, train_key)
        (params, opt_state), skipped, streak = trained
        method_state, opt_state = method.after(
            space, state.method, opt_state, params, trainee, data.validation, method_key
        )
        place = state.trained % config.architectures
        number, since = jnp.divmod(place, config.measure_every)
        err1 = jax.lax.cond(
            since == config.measure_every - 1,
            lambda: self.evaluate(params, actions, data.validation, config.eval_batches),
            lambda: state.err1[number],
        )
        params, opt_state = rows.put(shared, places, (params, opt_state))
        return state._replace(
            params=params,
            opt_state=opt_state,
            method=method_state,
            trained=state.trained + 1,
            skipped=skipped,
            streak=streak,
            actions=state.actions.at[place].set(actions),
            err1=state.err1.at[number].set(err1),
            loss=state.loss.at[place].set(losses.mean()),
        )

    def _places(self, architecture, params, opt_state):
        """Where what an architecture trains on is: its own rows, or all."""
        if self.method.whole:
            return jax.tree.map(lambda _: ..., (params, opt_state))
        return own_rows(self.space, self._tx(), architecture, params, opt_state)

    def _train(self, own, trainee, state, split, key):
        """Train an architecture's own weights on its batches, of which it may skip some.

        Returns ``((params, opt_state), skipped, streak)`` and the losses, float [batches].
        """
        config, space, tx, mask = self.config, self.space, self._tx(), trainee.mask

        def train(carry, i):
            (params, opt_state), hidden, skipped, streak = carry
            batch_key, loss_key = jax.random.split(jax.random.fold_in(key, i))
            batch = space.batch(split, state.trained * config.batches + i, batch_key)
            (loss, hidden), grads = self.method.gradient(
                space,
                state.method,
                opt_state,
                params,
                trainee.architecture,
                batch,
                hidden,
                loss_key,
            )
            if self.method.whole:  # nothing else is to enter a norm, say
                grads = jax.tree.map(lambda g, m: jnp.where(m, g, 0), grads, mask)
            finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
            # Outside its mask a step changes nothing: what is not finite has an empty mask.
            updates, opt_state = tx.update(
                grads, opt_state, params, mask=jax.tree.map(lambda m: m & finite, mask)
            )
            params = optax.apply_updates(params, updates)
            hidden = jax.tree.map(lambda h, s: jnp.where(finite, h, s), hidden, start)
            streak = jnp.where(finite, 0, streak + 1)
            return ((params, opt_state), hidden, skipped + ~finite, streak), loss

        # Each starts as it will be measured, without another architecture's carry.
        start = space.start(space.batch(split, 0, key))
        (own, _, skipped, streak), losses = jax.lax.scan(
            train, (own, start, state.skipped, state.streak), jnp.arange(config.batches)
        )
        return (own, skipped, streak), losses

    # --- The end of an epoch ---------------------------------------------------------------------

    def _finish(self, state, data):
        """What was forgotten in an epoch, then the sampler's turn, and the method's."""
        config, space = self.config, self.space
        steps = jnp.arange(config.eval_batches)
        measured = state.actions[config.measure_every - 1 :: config.measure_every]
        err2 = self._errors(state.params, data.validation, steps, measured)

        def rewards(actions, key):
            step = evaluation.random_step(space, data.validation, key)
            return space.reward(self._errors(state.params, data.validation, step[None], actions))

        key = jax.random.fold_in(jax.random.split(state.key)[1], state.trained)
        sampler, reward, entropy = self.sampler.learn(space, state.sampler, key, rewards)
        epoch = Epoch(state.actions, state.loss, state.err1, err2, reward, entropy)
        opt_state = self.method.end_epoch(state.opt_state, state.trained // config.architectures)
        return state._replace(sampler=sampler, opt_state=opt_state), epoch

    # --- What is asked of a search at its end ----------------------------------------------------

    def rank(
        self, state: SearchState, validation: chex.ArrayTree, key: jax.Array, n: int, batches: int
    ) -> tuple[jax.Array, jax.Array]:
        """Sample ``n`` architectures as the sampler does, and order them by validation error.

        Args:
          state: of the search.
          validation: the validation part of its data.
          key: of what the sampler draws.
          n: how many architectures.
          batches: how many of the first validation batches each is measured on.

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
        """The error of one architecture on the first ``batches`` batches of a split, a scalar.

        Args:
          params: the shared parameters.
          actions: of the architecture, int32 [decisions].
          split: a part of the search's data.
          batches: how many.
        """
        return evaluation.error(self.space, params, split, jnp.arange(batches), actions)

    # --- What the parts have in common -----------------------------------------------------------

    def _sample(self, state, key, n):
        """Actions of ``n`` architectures, by the sampler."""
        return self.sampler.sample(self.space, state.sampler, key, n, state.trained)

    def _errors(self, params, split, steps, actions):
        return evaluation.errors(self.space, params, split, steps, actions, self.config.at_once)

    def _tx(self):
        return self.method.wrap(self.optimizer)
