"""What is asked for often will be asked for again. Pure.

Each ask counts half as much after every half-life. Asks that come at a steady rate r add up to
r * half_life / ln 2, so what has added up tells the rate; and of asks that come at random at that
rate, the chance that at least one falls within the horizon is 1 - exp(-rate * horizon).

Only what a history is certain of counts: where many texts share few places, most of a newcomer's
count is that of others.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

from embedkeep.history import Asked, Bucket
from embedkeep.plans import Planned


def rank(
    history: Iterable[Bucket],
    *,
    now_s: float,
    width_s: float,
    half_life_s: float,
    horizon_s: float,
) -> list[Planned]:
    """All of *history*, the most worth first.

    Args:
        history: Several buckets of one time are added up.
        now_s: Unix time, seconds.
        width_s: Of each bucket. Asks are taken to lie in the middle of theirs, as far as it has
            passed.
    """
    weights: defaultdict[Asked, float] = defaultdict(float)
    for bucket in history:
        middle_s = (bucket.start_s + min(bucket.start_s + width_s, now_s)) / 2
        weight = 2.0 ** (-max(now_s - middle_s, 0.0) / half_life_s)
        for count in bucket.counts:
            weights[count.asked] += weight * count.least
    asks = math.log(2) / half_life_s * horizon_s
    ranked = [
        Planned(asked=asked, worth=-math.expm1(-weight * asks)) for asked, weight in weights.items()
    ]
    # By text where the worth is the same, so that the same history makes the same plan.
    ranked.sort(key=lambda each: (-each.worth, each.asked.prompt, each.asked.text))
    return ranked


def cut(
    ranked: Iterable[Planned], *, min_worth: float, max_texts: int, max_bytes: int
) -> tuple[Planned, ...]:
    """The first of *ranked* that are worth it and fit.

    Args:
        max_bytes: Of UTF-8 texts together.
    """
    kept: list[Planned] = []
    for each in ranked:
        max_bytes -= len(each.asked.text.encode())
        if each.worth < min_worth or len(kept) == max_texts or max_bytes < 0:
            break
        kept.append(each)
    return tuple(kept)
