"""Names of networks, so that a study can be checked before torch is loaded.

PRESETS are networks as published: a name of NAMES or of a library, and options. Parameters for ten classes:

| preset                 | pixels | parameters | source                                                             |
|------------------------|--------|------------|--------------------------------------------------------------------|
| convnet-3              | 32     | 320,010    | Zhao et al. 2021 (DC), width 128, instance norm                    |
| convnet-5              | 128    | 615,690    | Cazenavette et al. 2023 (GLaD), also PReDD                         |
| convnet-6              | 224    | 754,570    | Kim et al. 2022 (IDC), Gu et al. 2024 (Minimax Diffusion)          |
| resnet18-dd            | any    | 11,173,962 | DC, GLaD, PReDD: stem for small images, instance norm              |
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
from typing import Any

NAMES = ("convnet", "resnet", "resnet_ap", "vgg", "alexnet", "mobilenet", "efficientnet", "shufflenet", "vit")
LIBRARIES = ("timm", "torchvision")

_VIT_GLAD = {"patch": 16, "dim": 512, "depth": 10, "heads": 8, "head_dim": 64, "mlp_ratio": 1.0, "dropout": 0.1}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnet-3": ("convnet", {"depth": 3}),
    "convnet-5": ("convnet", {"depth": 5}),
    "convnet-6": ("convnet", {"depth": 6}),
    "resnet18-dd": ("resnet", {}),
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
    """Accept a name of NAMES or PRESETS, `timm:NAME` and `torchvision:NAME`; only these two load anything.

    Raises ValueError with the nearest valid names for any other.
    """
    if name.startswith(tuple(f"{library}:" for library in LIBRARIES)):
        _check_library(name)
    elif name not in NAMES and name not in PRESETS:
        valid = sorted({*NAMES, *PRESETS})
        near = difflib.get_close_matches(name, valid, 3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        others = " or ".join(f"{library}:NAME" for library in LIBRARIES)
        raise ValueError(f"network {name!r} is not known; {hint}choose {', '.join(valid)}, {others}")


# Networks by the names under which released files of DC, DSA and DM record accuracies.
RECORDED = {"ConvNet": "convnet-3", "AlexNet": "alexnet", "VGG11": "vgg-11", "ResNet18": "resnet18-dd"}
