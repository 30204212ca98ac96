"""What the report shows: tables and figures of a study."""

from typing import Literal

from pydantic import Field

from diver.config.base import Model, nearest

UNSEEN_MEAN = "unseen mean"
PUBLISHED = "data/published/published.csv"
TABLE_NAME = r"^table_[a-z0-9_]+$"
# Chains that are shown step by step; each is a decoded image a step.
CHAINS = 4


class PaperTable(Model):
    """A table of a publication: accuracies of some of the study's sets beside the published ones."""

    title: str = Field(description="What stands above the table.")
    datasets: list[str] = Field([], description="Datasets of the study, in order; all when left out.")
    ipc: list[int] = Field([], description="Images per class, in order; all when left out.")
    stage1: list[str] = Field([], description="Stage-1 entries, in order; all when left out.")
    stage2: list[str] = Field([], description="Stage-2 entries, in order ('none': the set itself); all when left out.")
    architectures: str | list[str] = Field(
        UNSEEN_MEAN, description="Architectures, in order, or 'unseen mean': the mean over the unseen ones."
    )
    scale: Literal["matched", "as-published"] = Field(
        "matched", description="Range of the images that students were given; students.as_published adds the second."
    )
    published_architectures: dict[str, str] = Field(
        {UNSEEN_MEAN: "mean of 5 unseen"},
        description="Published names of architectures and of the unseen mean, where they are not the labels.",
    )
    variant: str | None = Field(None, description="Variant that published numbers must be of; any when left out.")
    sources: list[str] = Field(
        [], description="Texts that sources of published numbers have, the preferred first; the file's order else."
    )

    def columns(self) -> list[str]:
        """Architectures and the unseen mean that a set has a row for."""
        return [self.architectures] if isinstance(self.architectures, str) else self.architectures

    def faults(self, key: str, known: dict[str, list[str]]) -> list[str]:
        """Names that the study does not have, with the nearest one; `known`: field -> valid names."""
        named = {
            "datasets": self.datasets,
            "ipc": list(map(str, self.ipc)),
            "stage1": self.stage1,
            "stage2": self.stage2,
            "architectures": self.columns(),
            "published_architectures": list(self.published_architectures),
        }
        return [
            f"{key}.{field}: unknown {name!r}; {nearest(name, known[field])}"
            for field, names in named.items()
            for name in names
            if name not in known[field]
        ]


class Report(Model):
    """What the report shows."""

    ladder: list[str] = Field([], description="Stage-2 entries of the ladder, in order ('none': the set itself).")
    ladder_of: str | None = Field(None, description="Stage-1 entry that the ladder is shown for.")
    gallery: list[str] = Field([], description="Stage-2 entries shown in the gallery, in order.")
    phases_of: str | None = Field(None, description="Stage-2 entry (method diver) whose trajectory is pictured.")
    published: str | None = Field(
        None,
        description=f"CSV of published accuracies ({PUBLISHED}) that stage-1 sets are set beside in "
        "tables/reproduced.*; `tables` and the table of diffusion-native systems take their published numbers from it "
        "too, and from that file when this is left out.",
    )
    tables: dict[str, PaperTable] = Field(
        {}, description="Tables of a publication by name (table_1, ...), each a target of its own."
    )
    reference_per_class: int = Field(
        1000,
        ge=6,
        description="Real training images of each class, at most, that the sets' images are measured against.",
    )
