"""placeholder"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PolicyPlan:
    pass


def apply_policy(pixels, plan):
    raise NotImplementedError


def draw_policy(stream, first_draw, policy, size):
    raise NotImplementedError
