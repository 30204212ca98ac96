"""Diffusion-native systems: a set from a dataset with the prior. A new system is a new file and a line here.

A system is called as (data, ipc, prior, config, artefacts=..., code=..., progress=..., folder=...), where `artefacts`
are the files that were prepared for it, by the names that `diver.config.native` declares, as it does its settings.
"""

from collections.abc import Callable

from diver.recover.d3hr import synthesise_d3hr
from diver.recover.d4m import synthesise_d4m
from diver.recover.edits import synthesise_edits, synthesise_vlcp
from diver.recover.mgd3 import synthesise_mgd3
from diver.recover.minimax import synthesise_minimax
from diver.sets import DistilledSet

SYSTEMS: dict[str, Callable[..., DistilledSet]] = {
    "d3hr": synthesise_d3hr,
    "d4m": synthesise_d4m,
    "edits": synthesise_edits,
    "vlcp": synthesise_vlcp,
    "mgd3": synthesise_mgd3,
    "minimax": synthesise_minimax,
}
