"""Stage 2: methods that map a distilled set to another one. A new method is a new file and a line here."""

from collections.abc import Callable

from diver.recover.base import LatentMap
from diver.recover.diver import diver_map
from diver.recover.predd import predd_map
from diver.recover.raw import raw_map
from diver.recover.vae import vae_map

METHODS: dict[str, Callable[..., LatentMap]] = {
    "vae": vae_map,
    "raw": raw_map,
    "predd": predd_map,
    "diver": diver_map,
}
