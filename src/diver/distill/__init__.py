"""Stage 1: methods that make a small set from a dataset. A new method is a new file and a line here.

A method is called as (data, ipc, config, code=..., progress=..., folder=...); its settings are in
`diver.config.distill`. What takes long keeps its state and pictures in the folder and goes on from there.
"""

from collections.abc import Callable

from diver.distill.coresets import distill_herding, distill_k_center, distill_k_means
from diver.distill.dc import distill_dc, distill_dsa
from diver.distill.dm import distill_dm
from diver.distill.edf import distill_edf
from diver.distill.mtt import distill_mtt
from diver.distill.random import distill_random
from diver.distill.rded import distill_rded
from diver.distill.released import released_set
from diver.distill.sre2l import distill_sre2l
from diver.sets import DistilledSet

METHODS: dict[str, Callable[..., DistilledSet]] = {
    "random": distill_random,
    "herding": distill_herding,
    "k_center": distill_k_center,
    "k_means": distill_k_means,
    "dc": distill_dc,
    "dsa": distill_dsa,
    "dm": distill_dm,
    "mtt": distill_mtt,
    "edf": distill_edf,
    "sre2l": distill_sre2l,
    "rded": distill_rded,
    "released": released_set,
}
