"""Names and options of networks, so that a study can be checked before torch is loaded.

PRESETS are networks as published: a name of OPTIONS or of a library, and options. Parameters for ten classes:

| preset                 | pixels | parameters | source                                                             |
|------------------------|--------|------------|--------------------------------------------------------------------|
| convnet-3              | 32     | 320,010    | Zhao et al. 2021 (DC), width 128, instance norm                    |
| convnet-5              | 128    | 615,690    | Cazenavette et al. 2023 (GLaD), also PReDD                         |
| convnet-6              | 224    | 754,570    | Kim et al. 2022 (IDC), Gu et al. 2024 (Minimax Diffusion)          |
| resnet18-dd            | any    | 11,173,962 | DC, GLaD, PReDD: stem for small images, instance norm              |
| resnet18-idc           | 224    | 11,181,642 | IDC, Minimax Diffusion: the stem of He et al. 2016, instance norm  |
| resnet20               | 32     | 269,722    | He et al. 2016, section 4.2: batch norm, shortcuts of zeros        |
| resnetap-10            | 224    | 4,910,922  | IDC, Minimax Diffusion; 4,903,242 up to 128 pixels                 |
| resnetap-10-cifar      | 32     | 1,228,970  | IDC, Minimax Diffusion: width 32                                   |
| vgg-11                 | 32     | 9,231,114  | DC, instance norm                                                  |
| vgg-11-glad            | 128    | 9,476,874  | GLaD: maps brought to 7x7 before the linear layer                  |
| alexnet                | 32     | 1,872,202  | DC; 2,333,002 at 128 pixels (GLaD)                                 |
| mobilenetv2            | 128    | 2,236,682  | Sandler et al. 2018, as PReDD: strides for large images            |
| efficientnet-b0        | 128    | 4,020,358  | Tan and Le 2019, as PReDD: no dropout, no dropped paths            |
| shufflenetv2           | 128    | 2,758,862  | PReDD: 3x3 convolutions of the main branch in two groups           |
| shufflenetv2-depthwise | 128    | 1,263,854  | Ma et al. 2018, the original                                       |
| vit-glad               | 128    | 16,176,650 | GLaD, PReDD: patch 16, no LayerNorm, dropout 0.1                   |
| resnet18               | 224    | 11,181,642 | He et al. 2016, by timm                                            |
| vit-b16                | 224    | 85,806,346 | Dosovitskiy et al. 2021, by timm                                   |

Sizes are those of the count; others are allowed where they fit.
"""

import difflib
from importlib import import_module
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from diver.config.base import Model
from diver.config.mending import Faults, fault_lines

LIBRARIES = ("timm", "torchvision")
Norm = Literal["instance", "batch", "group", "none"]
SHUFFLENETS = (0.5, 1.0, 1.5, 2.0)


class Options(Model):
    """Options of one of the project's networks, with the defaults of its constructor."""

    model_config = ConfigDict(strict=True)

    def misfit(self, size: int) -> str | None:
        """What stands against square images of `size` pixels, if anything does."""
        least = self.least()
        return f"images of {size} pixels are too small, at least {least} are needed" if size < least else None

    def least(self) -> int:
        """Pixels of the smallest images."""
        return 8


class ConvNetOptions(Options):
    width: PositiveInt = 128
    depth: PositiveInt = 3
    norm: Norm = "instance"

    def least(self) -> int:
        return 2**self.depth


class ResNetOptions(Options):
    width: PositiveInt = 64
    blocks: PositiveInt = 2
    norm: Norm = "instance"
    stem_stride: PositiveInt = 1
    stem: Literal["small", "large"] = "small"

    @model_validator(mode="after")
    def _one_stem(self) -> Self:
        if self.stem == "large" and self.stem_stride != 1:
            raise ValueError("stem_stride is of the small stem: leave it out with stem large")
        return self

    def least(self) -> int:
        return 32 if self.stem == "large" else 8 * self.stem_stride


class ResNetAPOptions(Options):
    width: PositiveInt = 64
    blocks: PositiveInt = 1
    norm: Norm = "instance"


class ResNetCIFAROptions(Options):
    depth: PositiveInt = 20
    width: PositiveInt = 16
    norm: Norm = "batch"

    @field_validator("depth")
    @classmethod
    def _whole_stages(cls, depth: int) -> int:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"{depth} is not 6 n + 2; choose 8, 14, 20, 32, 44, 56 or 110")
        return depth


class VGGOptions(Options):
    width: PositiveInt = 64
    depth: Literal[11, 13, 16, 19] = 11
    norm: Norm = "instance"
    grid: PositiveInt | None = None

    def least(self) -> int:
        return 32


class AlexNetOptions(Options):
    norm: Norm = "none"


class MobileNetOptions(Options):
    width: float = Field(1.0, gt=0)
    repeats: PositiveInt = 4
    norm: Norm = "batch"
    stem_stride: PositiveInt = 1
    second_stride: PositiveInt = 1

    def least(self) -> int:
        return 8 * self.stem_stride * self.second_stride


class EfficientNetOptions(Options):
    width: float = Field(1.0, gt=0)
    norm: Norm = "batch"

    def least(self) -> int:
        return 32


class ShuffleNetOptions(Options):
    width: float = 1.0
    groups: int = Field(2, ge=0)
    norm: Norm = "batch"

    @field_validator("width")
    @classmethod
    def _known(cls, width: float) -> float:
        if width not in SHUFFLENETS:
            raise ValueError(f"{width:g} is not known; choose {', '.join(map(str, SHUFFLENETS))}")
        return width

    def least(self) -> int:
        return 32


class ViTOptions(Options):
    dim: PositiveInt = 96
    depth: PositiveInt = 4
    heads: PositiveInt = 3
    patch: PositiveInt = 4
    mlp_ratio: float = Field(2.0, gt=0)
    norm: Literal["layer", "none"] = "layer"
    head_dim: PositiveInt | None = None
    dropout: float = Field(0.0, ge=0, lt=1)
    qkv_bias: bool = True
    init: Literal["small", "unit"] = "small"

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.head_dim is None and self.dim % self.heads:
            raise ValueError(f"heads {self.heads} must divide dim {self.dim}, unless head_dim is given")
        return self

    def misfit(self, size: int) -> str | None:
        return f"patch {self.patch} must divide the size {size}" if size % self.patch else None


OPTIONS: dict[str, type[Options]] = {
    "convnet": ConvNetOptions,
    "resnet": ResNetOptions,
    "resnet_ap": ResNetAPOptions,
    "resnet_cifar": ResNetCIFAROptions,
    "vgg": VGGOptions,
    "alexnet": AlexNetOptions,
    "mobilenet": MobileNetOptions,
    "efficientnet": EfficientNetOptions,
    "shufflenet": ShuffleNetOptions,
    "vit": ViTOptions,
}

_VIT_GLAD = {"patch": 16, "dim": 512, "depth": 10, "heads": 8, "head_dim": 64, "mlp_ratio": 1.0, "dropout": 0.1}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnet-3": ("convnet", {"depth": 3}),
    "convnet-5": ("convnet", {"depth": 5}),
    "convnet-6": ("convnet", {"depth": 6}),
    "resnet18-dd": ("resnet", {}),
    "resnet18-idc": ("resnet", {"stem": "large"}),
    "resnet20": ("resnet_cifar", {}),
    "resnetap-10": ("resnet_ap", {}),
    "resnetap-10-cifar": ("resnet_ap", {"width": 32}),
    "vgg-11": ("vgg", {}),
    "vgg-11-glad": ("vgg", {"grid": 7}),
    "alexnet": ("alexnet", {}),
    "mobilenetv2": ("mobilenet", {"stem_stride": 2, "second_stride": 2}),
    "efficientnet-b0": ("efficientnet", {}),
    "shufflenetv2": ("shufflenet", {}),
    "shufflenetv2-depthwise": ("shufflenet", {"groups": 0}),
    "vit-glad": ("vit", {**_VIT_GLAD, "norm": "none", "qkv_bias": False, "init": "unit"}),
    "resnet18": ("timm:resnet18", {}),
    "vit-b16": ("timm:vit_base_patch16_224", {}),
}


def _check_library(name: str) -> None:
    """Imports the library, which takes seconds. timm's names may end in `.tag`."""
    library, network = name.split(":", 1)
    try:
        if library == "timm":
            known = import_module("timm").list_models()
            found = import_module("timm").is_model(network)
        else:
            models = import_module("torchvision.models")
            known = models.list_models(module=models)
            found = network in known
    except ModuleNotFoundError as error:
        raise ValueError(f"network {name!r} needs {library}, which is not installed; install it") from error
    if not found:
        near = difflib.get_close_matches(network, known, 3)
        raise ValueError(f"network {name!r} is not known to {library}; nearest: {', '.join(near) or 'none'}")


def check_network(name: str) -> None:
    """Accept a name of OPTIONS or PRESETS, `timm:NAME` and `torchvision:NAME`; only these two load anything.

    Raises ValueError with the nearest valid names for any other.
    """
    if name.startswith(tuple(f"{library}:" for library in LIBRARIES)):
        _check_library(name)
    elif name not in OPTIONS and name not in PRESETS:
        valid = sorted({*OPTIONS, *PRESETS})
        near = difflib.get_close_matches(name, valid, 3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        others = " or ".join(f"{library}:NAME" for library in LIBRARIES)
        raise ValueError(f"network {name!r} is not known; {hint}choose {', '.join(valid)}, {others}")


def check_options(name: str, options: dict[str, Any], size: int | None = None) -> None:
    """Accept options that a network has, and a size of images that it takes; those of libraries are not known here.

    Raises Faults, a line for each option, or ValueError for the size.
    """
    network, preset = PRESETS.get(name, (name, {}))
    if network not in OPTIONS:
        return
    try:
        found = OPTIONS[network](**{**preset, **options})
    except ValidationError as error:
        raise Faults(fault_lines(error, OPTIONS[network])) from None
    if size is not None and (misfit := found.misfit(size)):
        raise ValueError(misfit)


# Networks by the names under which released files of DC, DSA and DM record accuracies.
RECORDED = {"ConvNet": "convnet-3", "AlexNet": "alexnet", "VGG11": "vgg-11", "ResNet18": "resnet18-dd"}
