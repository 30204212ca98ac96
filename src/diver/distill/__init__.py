"""Stage 1: methods that make a small set from a dataset. A new method is a new file and a line here.

A method is called as (data, ipc, config, code=..., progress=...); its settings are in `diver.config.distill`.
"""

from collections.abc import Callable

from diver.distill.dm import distill_dm
from diver.distill.random import distill_random
from diver.sets import DistilledSet

METHODS: dict[str, Callable[..., DistilledSet]] = {
    "random": distill_random,
    "dm": distill_dm,
}
