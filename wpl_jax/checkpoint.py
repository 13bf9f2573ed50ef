"""Save the whole state of a training run, and resume from it bit for bit.

Checkpoints are written with Orbax, which the ``experiments`` extra installs. No other module of the
package imports this one.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

try:
    import orbax.checkpoint as ocp
    import tensorstore  # what Orbax writes with
except ImportError as error:
    raise ImportError(
        "checkpoints need orbax-checkpoint: pip install '.[experiments]' in the checkout"
    ) from error

from wpl_jax.trees import place_like

__all__ = ["Checkpoints", "fingerprint_in"]

State = TypeVar("State")

_NOTHING = {"nothing": np.zeros(1, bool)}  # of a state without entries


class Checkpoints:
    """The checkpoints of one run, in a folder of their own. A context manager.

    Only complete checkpoints count. A run that is killed while it saves, or whose last checkpoint
    is damaged, resumes from the checkpoint before.

    Several processes may share the folder. All of them call :meth:`save` with the whole state, the
    first one writes it, and all read it.

    Example:
      >>> import tempfile, jax
      >>> from wpl_jax.checkpoint import Checkpoints
      >>> state = {"w": jax.numpy.ones(3), "key": jax.random.key(0)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Checkpoints(folder, {"learning_rate": 0.1}) as checkpoints:
      ...         checkpoints.save(1, state)
      ...         checkpoints.latest(), checkpoints.restore(state)["w"]
      (1, Array([1., 1., 1.], dtype=float32))
    """

    step: int | None
    """Of the state that was last saved or restored here; None if none has been."""

    notes: dict[str, Any]
    """What is saved beside each state, in types that JSON has: a log of how it came about, say.
    Once a state is restored, it is what was saved beside that one."""

    def __init__(
        self, folder: str | os.PathLike[str], fingerprint: Mapping[str, object], keep: int = 2
    ) -> None:
        """Open a folder, and create it if it does not exist.

        Args:
          folder: where the checkpoints are.
          fingerprint: the settings that the states depend on, in types that JSON has; mappings may
            be nested. A run with other settings cannot resume from these checkpoints.
          keep: how many checkpoints to keep, at least 2.

        Raises:
          ValueError: if the folder's checkpoints were saved with another fingerprint, or JSON does
            not have a setting. The message names what differs, or the setting.
          OSError: if the folder cannot be read, or created.
        """
        if keep < 2:
            raise ValueError(f"keep must be at least 2, the last one and one to spare, got {keep}")
        self._folder = Path(folder)
        _check_json("the fingerprint", fingerprint)
        self._fingerprint = json.loads(json.dumps(dict(fingerprint)))
        self.step, self.notes = None, {}
        self._began = self._took = 0.0  # the last save
        saved = _fingerprints(self._folder)
        if saved and self._fingerprint not in saved:
            raise ValueError(
                f"checkpoints in {self._folder} were made with "
                f"{_differences(saved[0], self._fingerprint)}; choose another folder or give the "
                "same settings"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        process = jax.process_index()
        self._writes = process == 0
        self._manager = ocp.CheckpointManager(
            self._folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,
                cleanup_tmp_directories=self._writes,
                enable_async_checkpointing=False,
                lightweight_initialize=True,
                # Each process on its own: none waits for another.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=process,
                    active_processes={process},
                    barrier_sync_key_prefix=f"process{process}",
                ),
            ),
        )

    def __enter__(self) -> Self:
        """Return the checkpoints themselves."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop Orbax's threads."""
        self._manager.close()

    def is_due(self) -> bool:
        """Whether to save again, if no more than a tenth of a run's time is to go into it.

        Gigabytes take longer to save than a GPU takes for an epoch. Where a save takes less than a
        second, the next is always due. A loop that asks must save its last state in any case. Of
        several processes, each has an answer of its own.

        Example:
          >>> import tempfile, jax
          >>> from wpl_jax.checkpoint import Checkpoints
          >>> state, epochs = jax.numpy.ones(3), 2
          >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, {}) as checkpoints:
          ...     for epoch in range(1, epochs + 1):
          ...         if checkpoints.is_due() or epoch == epochs:
          ...             checkpoints.save(epoch, state)
          ...     checkpoints.step
          2
        """
        return self._took < 1 or time.monotonic() - self._began >= 10 * self._took

    def save(self, step: int, state: object) -> None:
        """Save a state. When this returns, it is on disk.

        Checkpoints of the same step and of later steps are removed first: they are left over from
        an earlier run that this one replaces.

        Args:
          step: how far the run has come.
          state: a pytree of JAX arrays, typed keys, NumPy arrays and numbers.

        Raises:
          OSError: if it cannot be written, or the folder has been removed.
          ValueError: for a step that is no whole number from 0 on, or if the state or the notes
            hold what cannot be saved; what was there before is still there.
        """
        _check_step(step)
        _check_json("notes", self.notes)
        self._began = time.monotonic()
        leaves = jax.device_get({name: _untyped(leaf) for name, leaf in _by_name(state).items()})
        if not self._writes:
            self.step = step
            return
        if not self._folder.is_dir():
            raise FileNotFoundError(f"{self._folder} was removed or renamed")
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items() if np.size(leaf)}
        _check_dtypes(arrays)
        arrays = arrays or _NOTHING  # Orbax saves no empty tree
        try:
            _find_room(self._folder, sum(array.nbytes for array in arrays.values()))
            for obsolete in self._manager.all_steps():
                if obsolete >= step:
                    self._manager.delete(obsolete)
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(arrays)))
        except Exception as error:  # of many kinds, of Orbax and of what it stands on
            raise OSError(
                f"cannot save a checkpoint in {self._folder}: {_reason(error)}"
            ) from error
        # Orbax does not notice when a bit of an array is wrong, or a file is cut.
        folder = self._folder / str(step)
        files = [path for path in folder.rglob("*") if path.is_file()]
        digests = {str(path.relative_to(folder)): _sha256(path) for path in files}
        seal = {"fingerprint": self._fingerprint, "sha256": digests, "notes": self.notes}
        unfinished = folder / "seal.tmp"
        unfinished.write_text(json.dumps(seal | {"seal": _of_seal(seal)}))
        unfinished.replace(folder / "seal.json")
        self.step, self._took = step, time.monotonic() - self._began

    def latest(self) -> int | None:
        """The step of the last complete checkpoint, or None if there is no checkpoint.

        Raises:
          ValueError: if there are checkpoints, but all of them are damaged.
        """
        steps = _steps(self._folder)
        for step in steps:
            if self._is_whole(step):
                return step
        if not steps or (len(steps) == 1 and not _path(self._folder, steps[0]).exists()):
            return None  # a single one without a seal is the first, which was never finished
        raise ValueError(
            f"every checkpoint in {self._folder} is damaged (steps {steps}); delete the folder "
            "to start anew"
        )

    def incomplete(self) -> list[int]:
        """The steps after the last complete checkpoint, whose own are damaged, or unfinished."""
        latest = self.latest()
        return [step for step in _steps(self._folder) if latest is None or step > latest]

    def restore(self, state_like: State, step: int | None = None) -> State:
        """Read a state back, exactly as it was saved.

        Args:
          state_like: a tree with the state's structure, shapes and dtypes: a state of the same
            kind, or what ``jax.eval_shape`` returns for it. Arrays are put on the devices where
            its arrays are, and are weakly typed where they are. A Python number may stand for what
            JAX makes of it, and remains one.
          step: which checkpoint. By default the last complete one.

        Raises:
          FileNotFoundError: if there is no such checkpoint.
          ValueError: if the checkpoint is damaged, or its state has another structure, shape or
            dtype. The message names the first place that differs.
        """
        if step is None:
            step = self.latest()
        if step is None or step not in _steps(self._folder):
            wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
            raise FileNotFoundError(f"there is no {wanted} in {self._folder}")
        if not self._is_whole(step):
            raise ValueError(f"the checkpoint of step {step} in {self._folder} is damaged")
        self.notes = _seal(self._folder, step)["notes"]
        saved = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )
        arrays, leaves_like = saved.state, _by_name(state_like)
        arrays = {name: array for name, array in arrays.items() if name not in _NOTHING}
        for name, like in leaves_like.items():
            if name not in arrays and np.size(like) == 0:
                arrays[name] = np.zeros(like.shape, like.dtype)
        for name in leaves_like | arrays:
            found, forms = _form(arrays.get(name)), _forms(leaves_like.get(name))
            if found not in forms:
                raise ValueError(
                    f"the checkpoint of step {step} in {self._folder} has {found} at {name}, where "
                    f"the state has {forms[0]}; start anew in another folder"
                )
        self.step = step
        return jax.tree.unflatten(
            jax.tree.structure(state_like),
            [_placed_like(like, arrays[name]) for name, like in leaves_like.items()],
        )

    def _is_whole(self, step):
        folder, seal = self._folder / str(step), _seal(self._folder, step)
        try:
            return seal.get("fingerprint") == self._fingerprint and all(
                _sha256(folder / name) == digest for name, digest in seal["sha256"].items()
            )
        except OSError:
            return False


def fingerprint_in(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The settings that the checkpoints in a folder depend on, as :class:`Checkpoints` was given.

    Args:
      folder: where the checkpoints are.

    Returns:
      The fingerprint of the last checkpoint that has one, or None if there is none.
    """
    return next(iter(_fingerprints(Path(folder))), None)


def _fingerprints(folder: Path) -> list[dict[str, Any]]:
    """Those of all checkpoints that have one, the last one first."""
    seals = (_seal(folder, step) for step in _steps(folder))
    return [seal["fingerprint"] for seal in seals if seal]


def _steps(folder: Path) -> list[int]:
    """Steps of which there are checkpoints, finished or not, the last one first."""
    try:
        names = [path.name for path in folder.iterdir() if path.is_dir()]
    except FileNotFoundError:
        return []
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _path(folder: Path, step: int) -> Path:
    """Of what is written into a checkpoint last."""
    return folder / str(step) / "seal.json"


def _seal(folder: Path, step: int) -> dict[str, Any]:
    """What was written into a checkpoint last; empty if there is nothing, or it is damaged."""
    try:
        seal = json.loads(_path(folder, step).read_bytes())
        if seal.pop("seal", None) not in (None, _of_seal(seal)):  # early ones have none
            return {}
        parts = {name: dict(seal[name]) for name in ("fingerprint", "sha256")}
        return parts | {"notes": dict(seal.get("notes", {}))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _of_seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _find_room(folder: Path, size: int) -> None:
    """Raise OSError where a file of so many bytes cannot be: Orbax's threads would print it."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size + 2**16)


def _reason(error: Exception) -> str:
    """Why something could not be written, in a line: that of the system, if it is known."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else (str(error).splitlines() or [repr(error)])[0]


def _differences(saved: dict[str, Any], given: dict[str, Any]) -> str:
    """The first settings that differ, in words."""
    old, new = _flat(saved), _flat(given)
    different = [
        f"{name}={old.get(name, '(unset)')}, not {new.get(name, '(unset)')}"
        for name in old | new
        if old.get(name) != new.get(name)
    ]
    more = [f"and {len(different) - 3} more"] if len(different) > 3 else []
    return ", ".join(different[:3] + more)


def _flat(settings: dict[str, Any]) -> dict[str, str]:
    """Settings as JSON by their names, those of nested ones joined by dots."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": text for inner, text in _flat(value).items()}
        else:
            flat[name] = json.dumps(value)
    return flat


def _check_step(step):
    if isinstance(step, bool) or not isinstance(step, int | np.integer) or step < 0:
        raise ValueError(f"step must be a whole number, 0 or more, got {step!r}")


def _check_json(what, values, above=""):
    for name, value in values.items():
        try:
            json.dumps({name: value})
        except (TypeError, ValueError) as error:
            if isinstance(value, dict):
                _check_json(what, value, f"{above}{name}.")
            raise ValueError(
                f"{what} cannot be written as JSON at {f'{above}{name}'!r}: {error}"
            ) from None


def _check_dtypes(arrays):
    for name, array in arrays.items():
        if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == np.bool_):
            raise ValueError(
                f"a state holds arrays of numbers, got {array.dtype} at {name}: keep anything else "
                "in the notes, or outside"
            )
        try:
            tensorstore.dtype(array.dtype)
        except ValueError:
            raise ValueError(
                f"a file of Orbax holds no {array.dtype}, which is at {name}: save it as "
                "another dtype, such as int8 or float32"
            ) from None


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _by_name(tree):
    """Leaves by the names of their paths, which are unique."""
    return {
        jax.tree_util.keystr(path) or "the root": x for path, x in jax.tree.leaves_with_path(tree)
    }


def _is_key(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _untyped(leaf):
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _form(leaf: Any) -> str:
    """The dtype and shape in which a leaf is saved."""
    if leaf is None:
        return "nothing"
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _forms(like: Any) -> list[str]:
    """Those in which what a leaf stands for may be saved: JAX gives a Python number its dtype."""
    is_python = isinstance(like, int | float | complex) and not hasattr(like, "dtype")
    return [_form(like), *([f"{jnp.result_type(type(like))}[]"] if is_python else [])]


def _weakly_typed(array):
    """The same numbers, weakly typed: no conversion gives that, but an update keeps it."""
    array = jnp.asarray(array)
    zero = jnp.asarray(array.dtype.type().item())
    return place_like(jnp.broadcast_to(zero, array.shape), array).at[...].set(array)


def _placed_like(like: Any, array: np.ndarray):
    """The array as what ``like`` is: typed key or not, on its devices, or not one of JAX's."""
    if not hasattr(like, "dtype"):
        return type(like)(array.item())
    if isinstance(like, np.ndarray | np.generic):
        return array if isinstance(like, np.ndarray) else array[()]
    value: Any = array
    if _is_key(like):
        impl = jax.random.key_impl(jnp.empty((), like.dtype))
        value = jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    is_weak = getattr(like, "weak_type", False)
    committed = isinstance(like, jax.ShapeDtypeStruct) or like.committed
    if committed and like.sharding and not like.sharding.is_fully_addressable:
        # Not device_put, which compares the values of all processes, and NaN is not itself.
        value = jax.make_array_from_callback(array.shape, like.sharding, lambda i: array[i])
        if is_weak:
            value = jax.jit(_weakly_typed, out_shardings=like.sharding)(value)
        return jax.random.wrap_key_data(value, impl=impl) if _is_key(like) else value
    value = _weakly_typed(value) if is_weak else value
    return jax.device_put(value, like.sharding if committed else None)
