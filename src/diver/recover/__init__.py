"""Stage 2: methods that map a distilled set to another one. A new method is a new file and a line here."""

from collections.abc import Callable

from diver.recover.diver import recover_diver
from diver.recover.predd import recover_predd
from diver.recover.raw import recover_raw
from diver.recover.vae import recover_vae
from diver.sets import DistilledSet

METHODS: dict[str, Callable[..., DistilledSet]] = {
    "vae": recover_vae,
    "raw": recover_raw,
    "predd": recover_predd,
    "diver": recover_diver,
}
