"""How the radius follows over-fitting: from losses at θ and on held-out data to the radius of the next steps."""

import math
from collections.abc import Sequence

LARGEST = 0.5
NARROW_GAP, WIDE_GAP = 0.1, 0.3
SOLVED, LOSS_RATIO, WHERE_SOLVED = 0.1, 2.0, 0.1
EVALUATIONS = 3
FIRST, GROWTH = 0.03, 10.0
LEAST_SHARE, LARGEST_SHARE = 0.1, 1.0
MORE, LESS = 3.0, 2.0
STEEP, SHARE_WHERE_STEEP = 5.0, 0.03


def radius_for(training_loss: float, held_out_losses: Sequence[float], loss_at_start: float) -> float:
    """Return the radius for a training loss, the last held-out losses, and the loss that the training began with.

    The gap is that between the training loss and the lowest of the held-out losses, since one evaluation, or two, may
    come out badly where nothing is over-fitted (batch norm at a high learning rate). While it is less than a tenth of
    the loss at the start, it is the ordinary one of a network that still learns: the radius is 0. From there it grows
    in proportion to the gap, to 0.5, the radius of the paper's authors, where the gap is three tenths or more.

    Where the training data are all but solved, the loss below a tenth of that at the start, no gap is wide any more: it
    is at least 0.1 where the held-out loss is more than twice the training loss.
    """
    if loss_at_start <= 0:
        return 0.0
    lowest = min(held_out_losses)
    gap = (lowest - training_loss) / loss_at_start
    radius = LARGEST * min(1.0, max(0.0, (gap - NARROW_GAP) / (WIDE_GAP - NARROW_GAP)))
    is_solved = 0 <= training_loss < SOLVED * loss_at_start  # a loss that goes below 0 has no end
    return max(radius, WHERE_SOLVED) if is_solved and lowest > LOSS_RATIO * training_loss else radius


def share_for(share: float, training_losses: tuple[float, float], held_out_losses: Sequence[float]) -> float:
    """Return the share of what was learnt that the next perturbation may take back, in [0.1, 1].

    It is small while what is learnt holds for held-out data, too: half as large after each evaluation with a new lowest
    loss. It is three times as large after one without, while the training loss goes on falling: what is learnt now is
    learnt by heart. Where both losses are worse than before, the perturbation undoes the training: a third.

    Args:
        share: so far.
        training_losses: before and after the last evaluation but one.
        held_out_losses: the last ones; the newest is the last.
    """
    *before, now = held_out_losses
    if not before:
        return share
    before_loss, loss = training_losses
    factor = 1 / LESS if now < min(before) else MORE if loss < before_loss else 1 / MORE
    return min(LARGEST_SHARE, max(LEAST_SHARE, factor * share))


def is_steep(slope: float, loss_at_start: float) -> bool:
    """Return whether the loss rises steeply around the weights, as in small transformers.

    Args:
        slope: what the loss at θ + Δ is higher by, over the radius; steep: 0.2 would raise it by that at the start.
        loss_at_start: of the training.
    """
    return slope > STEEP * max(0.0, loss_at_start)


def limit_for(learnt: float, share: float, tried: float, slope: float, steep: bool, gets_worse: bool) -> float:
    """Return the largest radius that takes back no more than a share of what was learnt, as far as that is known.

    What 0.5 is for one network is 0.01 for another: where the loss rises steeply around the weights, a larger radius
    undoes the training. So the first radius is a small one, which tells how steeply. A steep network is not perturbed
    before the held-out loss gets worse, however wide the gap is; then the share is 0.03 at most.

    Args:
        learnt: what the training loss is lower by than at the start.
        share: of it.
        tried: the last radius that was used; 0 if none was.
        slope: what the loss at θ + Δ was higher by, over that radius; in a steep network the largest so far.
        steep: whether the network is.
        gets_worse: the last held-out losses, three, are higher than the lowest of the training.
    """
    if not tried:
        return FIRST
    if steep:
        if not gets_worse:
            return 0.0
        share = min(share, SHARE_WHERE_STEEP)
    return min(GROWTH * tried, share * max(0.0, learnt) / slope if slope else math.inf)
