"""What the configurations of all networks for small images have in common."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig


class SmallImageConfig(PreTrainedConfig):
    """Fields that every network for small images has.

    Args:
        num_channels: channels of an image, >= 1.
        image_size: height and width in pixels, >= 1, that images should be resized to. It is kept for image
            processors: the networks halve with rounding up and pool globally, so they take images of any size.
        dropout: probability, in [0, 1), of setting an activation to zero; each network says where.
        **kwargs: fields of `PreTrainedConfig`, as `num_labels` and `id2label`; two classes are its default.

    Raises:
        ValueError: a field is out of its range.
        TypeError: a field is of the wrong type.
    """

    def __init__(self, num_channels: int = 3, image_size: int = 32, dropout: float = 0.0, **kwargs: Any) -> None:
        self.num_channels = num_channels
        self.image_size = image_size
        self.dropout = dropout
        super().__init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Refuse fields that no network can be made of; called again when a network is made.

        Raises:
            ValueError: a field is out of its range.
            TypeError: a field is of the wrong type.
        """
        check_integer("num_channels", self.num_channels)
        check_integer("image_size", self.image_size)
        check_integer("num_labels", self.num_labels)
        check_number("dropout", self.dropout)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}; use 0 to switch it off")
        if self.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                f"`problem_type` must be 'single_label_classification' or None, got {self.problem_type!r}; the loss "
                "is the cross entropy of one class per image: leave the field out"
            )


def check_integer(name: str, value: Any) -> int:
    """Return a field, or raise unless it is an integer >= 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"`{name}` must be an integer, got {value!r}; write a whole number >= 1")
    if value < 1:
        raise ValueError(f"`{name}` must be >= 1, got {value}; write a whole number >= 1")
    return value


def check_number(name: str, value: Any) -> None:
    """Raise unless a field is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` must be a number, got {value!r}; write it without quotes")
    if not math.isfinite(value):
        raise ValueError(f"`{name}` must be finite, got {value}; write a number")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise unless a field is one of the names."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}; choose one of these")


def integer_list(name: str, values: Any) -> list[int]:
    """Return a list field as a list, or raise unless it is a sequence of integers >= 1."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"`{name}` must be a list of integers, got {values!r}; write it as [16, 32]")
    return [check_integer(f"{name}[{index}]", value) for index, value in enumerate(values)]


def check_stages(name: str, values: Sequence[int], other_name: str, other: Sequence[int]) -> None:
    """Raise unless two lists with an entry for each stage have the same number of stages, at least one."""
    if not values or len(values) != len(other):
        raise ValueError(
            f"`{name}` and `{other_name}` must have one entry for each stage, got {list(values)} and {list(other)}; "
            "give both the same length, at least 1"
        )
