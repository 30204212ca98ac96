"""A trained network in one file: teachers of soft-label protocols and encoders of coresets.

The file is safetensors: the state dict, and in the header all that is needed to build the network and to use it.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from diver.config.base import first_fault
from diver.networks import create, memory_format
from diver.sets import ValueRange
from diver.tensorfile import TensorFileError, read_tensors, write_tensors

BATCH = 256
TIMM = "timm:"
# Files of torch.save: a state dict, perhaps inside a checkpoint under one of these keys.
FOREIGN = (".pt", ".pth", ".th", ".tar", ".bin", ".ckpt")
_INSIDE = ("state_dict", "model_state_dict", "model", "net")


class WeightsError(ValueError):
    """A trained network cannot be read, written or used; one line: the file or source, the fault, the remedy."""


def is_state_dict(source: str | Path) -> bool:
    """Whether a teacher's source is taken for a foreign state dict: by its suffix, .pt, .pth, .pth.tar and the like."""
    return not str(source).startswith(TIMM) and Path(source).suffix.lower() in FOREIGN


class Dataset(Protocol):
    """What a teacher has to fit; a prepared dataset has it."""

    @property
    def dataset(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def train_images(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network with what is needed to use it.

    network: in eval mode, without gradients for its weights; standardised float32 [N, channels, size, size] to
    logits [N, len(classes)]. mean, std: of that standardisation, per channel.
    accuracy: percent of `dataset`'s test images, None if unknown. notes: how it was trained; JSON.
    """

    network: nn.Module
    name: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    channels: int
    size: int
    dataset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def logits(self, images: Tensor, batch: int = BATCH) -> Tensor:
        """float32 [N, classes] of standardised float images [N, C, H, W], on the images' device, in eval mode.

        They carry no gradient, and a loss on them can be differentiated.
        """
        return _forward(self.network, images, batch, lambda output: output)


class _Header(BaseModel):
    """The header of a trained network's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["trained network 1"]
    name: str = Field(min_length=1)
    options: dict[str, Any]
    classes: tuple[str, ...] = Field(min_length=1)
    channels: int = Field(ge=1)
    size: int = Field(ge=1)
    dataset: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    accuracy: float | None = Field(ge=0, le=100)
    notes: dict[str, Any]


class Restandardised(nn.Module):
    """A network behind a change of standardisation: takes images of the range `given`, the network those of `own`."""

    def __init__(self, network: nn.Module, own: ValueRange, given: ValueRange) -> None:
        super().__init__()
        self.network, self.own, self.given = network, own, given
        self.memory_format = memory_format(network)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.own.from_unit(self.given.to_unit(x)))


def for_input(trained: Trained, mean: Sequence[float], std: Sequence[float]) -> Trained:
    """The same network for images that are standardised by `mean` and `std`; unchanged if they are its own."""
    own, given = ValueRange.standardised(trained.mean, trained.std), ValueRange.standardised(mean, std)
    if own == given:
        return trained
    network = Restandardised(trained.network, own, given).eval()
    return replace(trained, network=network, mean=given.mean, std=given.std)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _build(trained: Trained | _Header) -> nn.Module:
    """The network, in eval mode, frozen, with weights that do not matter; leaves the global generator alone."""
    with torch.random.fork_rng(devices=[]):
        network = create(trained.name, len(trained.classes), trained.channels, trained.size, **trained.options)
    return network.eval().requires_grad_(False)


def _misfit(state: dict[str, Tensor], network: nn.Module) -> str | None:
    """The first reason why a state dict is not one of the network; dtypes may differ."""
    expected = network.state_dict()
    for found, words in ((expected.keys() - state.keys(), "lacks"), (state.keys() - expected.keys(), "has an unknown")):
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return f"the state dict {words} {min(found)!r}{more}"
    for name, own in expected.items():
        tensor = state[name]
        if tensor.shape != own.shape:
            return f"{name} is {list(tensor.shape)}, the network's is {list(own.shape)}"
        if not torch.isfinite(tensor).all():
            return f"{name} has values that are not finite"
    return None


def write_trained(path: str | Path, trained: Trained) -> None:
    """Write a trained network as one safetensors file, atomically; the same network gives the same bytes.

    Raises WeightsError if what would be written could not be read: weights that are not finite, not float32, or not
    those of the named network with its options; a header that is not valid.
    """
    network = trained.network
    if isinstance(network, Restandardised):
        trained = replace(trained, network=network.network, mean=network.own.mean, std=network.own.std)
    names = [name for name in _Header.model_fields if name != "format"]
    # Copies, because a trainer may keep all parameters in one buffer, and a network may share some of them.
    state = {name: tensor.detach().clone() for name, tensor in trained.network.state_dict().items()}
    other = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dtype != torch.float32]
    try:
        header = _Header(format="trained network 1", **{name: getattr(trained, name) for name in names})
        _check_range(header)
        fault = f"{other[0]} is {state[other[0]].dtype}, not float32" if other else _misfit(state, _build(header))
        if fault is None:
            write_tensors(path, state, header.model_dump())
    except ValidationError as error:
        fault = first_fault(error)
    except (TypeError, ValueError) as error:
        fault = str(error)
    if fault:
        raise WeightsError(f"{path}: not written, {fault}")


def _check_range(trained: Trained | _Header) -> None:
    """Raise ValueError unless mean and std are a standardisation of the network's channels."""
    ValueRange.standardised(trained.mean, trained.std)
    if len(trained.mean) != trained.channels:
        raise ValueError(f"mean and std have {len(trained.mean)} channels, the network {trained.channels}")


def read_trained(path: str | Path) -> Trained:
    """Read a file of `write_trained`; the global random generator is left alone, nothing in the file is executed.

    Raises WeightsError for a file that is missing, truncated, foreign, or whose weights do not fit its network.
    """
    remedy = "train it again (`diver teach`)"
    try:
        state, found = read_tensors(path)
        header = _Header.model_validate(found)
        _check_range(header)
        network = _build(header)
    except TensorFileError as error:
        raise WeightsError(
            f"{path}: {error}; give a file of `diver teach`, or a state dict ({', '.join(FOREIGN)}) with its "
            "network's name"
        ) from error
    except ValidationError as error:
        raise WeightsError(f"{path}: not a trained network, {first_fault(error)}; {remedy}") from error
    except (ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: the network cannot be built, {error}; {remedy}") from error
    if fault := _misfit(state, network):
        raise WeightsError(f"{path}: {fault}; {remedy}")
    network.load_state_dict(state)
    return Trained(network, **header.model_dump(exclude={"format"}))


def load_teacher(
    source: str | Path,
    data: Dataset,
    network: str | None = None,
    options: dict[str, Any] | None = None,
    labelled: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Trained:
    """A teacher for images that are standardised as `data`'s, whatever its own standardisation is.

    source: a file of `write_trained`; `timm:NAME` for timm's pretrained weights (also `timm:hf-hub:OWNER/NAME` and
    `timm:local-dir:PATH`), downloaded unless they are in the local cache; or a foreign state dict (`is_state_dict`),
    read with tensors and plain numbers allowed and nothing else, of the given `network` with `options`, which the
    other two say themselves.
    A foreign state dict and timm's weights do not name their classes: their order is taken on trust, and so is
    a state dict's standardisation: by `mean` and `std`, of which `data`'s stand for what is left out.
    labelled: False lets a file of `write_trained` with other classes pass, for what uses features and no logits.
    Raises WeightsError, naming the source, the fault and the remedy, also when the teacher does not fit `data`.
    """
    if str(source).startswith(TIMM):
        trained = _pretrained(str(source), data)
    elif is_state_dict(source):
        trained = _foreign(Path(source), data, network, options or {}, mean or data.mean, std or data.std)
    else:
        trained = read_trained(source)
        _check_fits(str(source), trained, data, labelled)
    return for_input(trained, data.mean, data.std)


def _check_fits(source: str, trained: Trained, data: Dataset, labelled: bool) -> None:
    remedy = f"train a teacher on {data.dataset}"
    if labelled and trained.classes != tuple(data.classes):
        how = "in another order" if set(trained.classes) == set(data.classes) else f"({len(trained.classes)})"
        raise WeightsError(
            f"{source}: its classes are not those of {data.dataset} ({len(data.classes)}) {how}; {remedy}"
        )
    shape = [trained.channels, trained.size, trained.size]
    if list(data.train_images.shape[1:]) != shape:
        raise WeightsError(
            f"{source}: it takes images {shape}, those of {data.dataset} are {list(data.train_images.shape[1:])}; "
            + remedy
        )


def _pretrained(source: str, data: Dataset) -> Trained:
    """timm's pretrained network for images of the dataset's channels and size."""
    import timm  # here, because this import takes several seconds

    name = source.removeprefix(TIMM)
    channels, size = data.train_images.shape[1:3]
    wanted, remedy = len(data.classes), f"train a teacher on {data.dataset} and give its file"

    def check(classes: int) -> None:
        if classes != wanted:
            raise WeightsError(f"{source}: it has {classes} classes, {data.dataset} has {wanted}; {remedy}")

    if ":" not in name:
        if not timm.is_model(name):
            raise WeightsError(f"{source}: timm has no such network; timm.list_pretrained() lists those with weights")
        try:
            known = timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            raise WeightsError(f"{source}: {error}; timm.list_pretrained() lists the names with weights") from error
        if known is None or not known.has_weights:
            raise WeightsError(f"{source}: timm has no pretrained weights for it; {remedy}")
        check(known.num_classes)
    try:
        with torch.random.fork_rng(devices=[]):
            # As in `create`: transformers need the size, convolutional networks refuse it.
            try:
                network: Any = timm.create_model(name, pretrained=True, in_chans=channels, img_size=size)
            except TypeError:
                network = timm.create_model(name, pretrained=True, in_chans=channels)
    except OSError as error:
        raise WeightsError(
            f"{source}: its weights are neither in the local cache nor to be had ({_short(error)}); load it once where "
            "there is a network and copy the cache (HF_HOME)"
        ) from error
    except (ValueError, RuntimeError, TypeError) as error:
        raise WeightsError(f"{source}: cannot be loaded ({_short(error)}); {remedy}") from error
    check(network.num_classes)
    about = network.pretrained_cfg
    return Trained(
        network.eval().requires_grad_(False),
        f"{TIMM}{about['architecture']}",
        {},
        tuple(data.classes),
        channels,
        size,
        data.dataset,
        tuple(about["mean"]),
        tuple(about["std"]),
        notes={"pretrained": name, "tag": about.get("tag") or ""},
    )


def _foreign(
    path: Path,
    data: Dataset,
    network: str | None,
    options: dict[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
) -> Trained:
    """A network with the weights of a file of torch.save."""
    state = _state_dict(path)
    if network is None:
        raise WeightsError(
            f"{path}: a state dict does not say which network it is of; give the network and options, or "
            "make a teacher's file of it: diver teach --weights"
        )
    channels, size = data.train_images.shape[1:3]
    trained = Trained(
        nn.Identity(), network, options, tuple(data.classes), channels, size, data.dataset, tuple(mean), tuple(std)
    )
    try:
        _check_range(trained)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; give a mean and a deviation above 0 of each of the channels") from error
    try:
        built = _build(trained)
    except (ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{path}: the network cannot be built, {error}") from error
    # Files of torch before 0.4.1 do not count batches, and nothing here asks for their number.
    state = {name: one for name, one in built.state_dict().items() if name.endswith("num_batches_tracked")} | state
    if fault := _misfit(state, built):
        raise WeightsError(f"{path}: not of {network} with {options}, {fault}; give the network and options it is of")
    built.load_state_dict(state)
    return replace(trained, network=built, notes={"state_dict": path.name})


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict of a file of torch.save, out of a checkpoint and without the prefix of a parallel wrapper."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give the path of a state dict or of a file of `diver teach`")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise nearly anything, and all of it means the same to the caller
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks to run {wanted[1]}" if wanted else "it is truncated or not a file of torch.save"
        raise WeightsError(
            f"{path}: refused, {reason}; save the network's state_dict() alone with torch.save"
        ) from error
    for key in _INSIDE:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    named = isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    if not named or not content:
        raise WeightsError(f"{path}: not a state dict; save the network's state_dict() alone with torch.save")
    prefix = "module." if all(name.startswith("module.") for name in content) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def _forward(network: nn.Module, images: Tensor, batch: int, result: Callable[[Tensor], Tensor]) -> Tensor:
    """result(output of the network) of all images, float32 on their device; the network's modes are left as found."""
    modes = [(module, module.training) for module in network.modules()]
    device, layout = next(network.parameters(), images).device, memory_format(network)
    network.eval()
    try:
        parts = []
        for x in images.split(batch):
            with torch.inference_mode():
                output = result(network(x.to(device).to(memory_format=layout)))
                # A copy, so that no view keeps all activations of its batch.
                parts.append(output.to(images.device, torch.float32, copy=True))
        # Outside inference mode, so that a loss on the result can be differentiated.
        return torch.cat(parts)
    finally:
        for module, training in modes:
            module.training = training


def embed(network: nn.Module, images: Tensor, batch: int = BATCH) -> Tensor:
    """Features float32 [N, D] of standardised float images [N, C, H, W]: the input of the last nn.Linear that runs.

    Evaluated in eval mode, without gradient, on the network's device; the result is on the images' device.
    Raises ValueError if the logits do not come from an nn.Linear on one vector per image.
    """
    seen: list[tuple[nn.Module, Tensor]] = []

    def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = [(layer, inputs[0])]

    def last_input(output: Tensor) -> Tensor:
        if not seen:
            raise ValueError(f"{type(network).__name__} runs no nn.Linear, so it has no embedding")
        layer, features = seen.pop()
        if features.ndim != 2 or layer.out_features != output.shape[-1]:
            raise ValueError(f"the logits of {type(network).__name__} are not those of its last nn.Linear")
        return features

    hooks = [m.register_forward_pre_hook(keep) for m in network.modules() if isinstance(m, nn.Linear)]
    try:
        return _forward(network, images, batch, last_input)
    finally:
        for hook in hooks:
            hook.remove()
