"""What the command that draws flatness can be told, beside the models."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_amp.vision.train.images import DataArguments

_DEFAULT_EPSILON = {"tensor": 0.1, "global": 0.5}


@dataclass
class FlatnessArguments(DataArguments):
    """Which images, where to look, and where the pictures go. The data flags are those of the training command.

    Args:
        augmentation: not a flag here; images are never augmented.
        output_dir: folder of figures and numbers; None: the first model's folder, or `outputs/flatness_<name>` for
            one from the Hub.
        labels: names of the models in the figures; None: the end of their paths.
        max_samples: most images of each split, >= 1, stratified.
        label_noise_seed: the training's seed, with which `label_noise` chose the labels it replaced.
        num_directions: random directions, >= 1.
        num_sizes: sizes of perturbations from 0 to the largest, >= 2.
        max_size: largest step along random directions, > 0; 1 is as large as the weights, filter by filter.
        max_epsilon: largest radius ε of the worst direction, > 0; None: 0.1 per tensor, 0.5 global.
        norm: what one ε-ball covers, `tensor` or `global`.
        ascents: gradient ascents for each radius, >= 1.
        grid_size: places on each side of the surface, odd, >= 3, so that θ is one of them.
        seed: of the random directions and of the choice of `max_samples`.
        per_device_eval_batch_size: images evaluated at once, >= 1.
        use_cpu: leave a GPU alone.
        trust_remote_code: run the modelling code that a model brings along.
        overwrite: replace figures that were made with other settings.

    Raises:
        ValueError: a value is outside its range.
    """

    augmentation: str | None = field(default=None, init=False)
    output_dir: str | None = field(
        default=None, metadata={"help": "Where figures and numbers go; default: the first model's folder."}
    )
    labels: list[str] | None = field(default=None, metadata={"help": "Names of the models in the figures."})
    max_samples: int = field(default=400, metadata={"help": "Most images of each split."})
    label_noise_seed: int = field(
        default=0, metadata={"help": "The seed that the model was trained with, which chose its wrong labels."}
    )
    num_directions: int = field(default=5, metadata={"help": "Random filter-normalised directions."})
    num_sizes: int = field(default=11, metadata={"help": "Sizes of perturbations, from 0 to the largest."})
    max_size: float = field(
        default=1.0, metadata={"help": "Largest step along random directions; 1 is as large as the weights."}
    )
    max_epsilon: float | None = field(
        default=None, metadata={"help": "Largest radius of the worst direction; default: 0.1 per tensor, 0.5 global."}
    )
    norm: str = field(
        default="tensor", metadata={"help": "One epsilon-ball for each tensor, or one for all: tensor or global."}
    )
    ascents: int = field(default=5, metadata={"help": "Gradient ascents to the worst direction, for each radius."})
    grid_size: int = field(default=15, metadata={"help": "Places on each side of the loss surface, odd."})
    seed: int = field(default=0, metadata={"help": "Seed of the directions and of the choice of images."})
    per_device_eval_batch_size: int = field(default=250, metadata={"help": "Images evaluated at once."})
    use_cpu: bool = field(default=False, metadata={"help": "Leave a GPU alone."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the modelling code that a model brings along; read it first."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace figures made with other settings."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in _DEFAULT_EPSILON:
            raise ValueError(f"`norm` must be tensor or global, got {self.norm!r}; choose one")
        if self.max_epsilon is None:
            self.max_epsilon = _DEFAULT_EPSILON[self.norm]
        for name, least in (
            ("max_samples", 1),
            ("num_directions", 1),
            ("num_sizes", 2),
            ("ascents", 1),
            ("grid_size", 3),
            ("per_device_eval_batch_size", 1),
            ("seed", 0),
            ("label_noise_seed", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(
                    f"`{name}` must be >= {least}, got {getattr(self, name)}; leave it out for the default"
                )
        for name in ("max_size", "max_epsilon"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(
                    f"`{name}` must be a number > 0, got {getattr(self, name)}; leave it out for the default"
                )
        if self.grid_size % 2 == 0:
            raise ValueError(
                f"`grid_size` must be odd, so that the model itself is on the grid, got {self.grid_size}; "
                f"use {self.grid_size + 1}"
            )

    def places(self) -> dict[str, int | float | str | None]:
        """Return the settings that decide where the loss is measured."""
        names = ("num_directions", "num_sizes", "max_size", "max_epsilon", "norm", "ascents", "grid_size", "seed")
        return {name: getattr(self, name) for name in names}
