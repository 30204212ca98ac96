"""Stage 1: methods that make a small set from a dataset. A new method is a new file and a line here.

A method is called as (data, ipc, config, code=..., progress=...); its settings are in `diver.config.distill`.
"""

from collections.abc import Callable

from diver.distill.coresets import distill_herding, distill_k_center, distill_k_means
from diver.distill.dm import distill_dm
from diver.distill.random import distill_random
from diver.distill.released import released_set
from diver.sets import DistilledSet

METHODS: dict[str, Callable[..., DistilledSet]] = {
    "random": distill_random,
    "herding": distill_herding,
    "k_center": distill_k_center,
    "k_means": distill_k_means,
    "dm": distill_dm,
    "released": released_set,
}
