"""Trained networks in files: round trips, teachers of every source, embeddings, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diver.data.prepared import Prepared
from diver.networks import create
from diver.networks.weights import Trained, WeightsError, embed, for_input, load_teacher, read_trained, write_trained
from diver.sets import ValueRange
from diver.tensorfile import read_tensors, write_tensors

MEAN, STD = (0.3, 0.4, 0.5), (0.2, 0.25, 0.3)
SMALL = {
    "convnet": {"width": 4, "depth": 2},
    "resnet": {"width": 4, "norm": "batch"},
    "mobilenet": {"width": 0.25, "repeats": 1},
    "vit": {"dim": 24, "depth": 1},
    "timm:test_resnet": {},
    "timm:test_vit": {},
}


def trained(name: str = "convnet", **changes: Any) -> Trained:
    """A small network with weights and running statistics that are not those of a fresh one."""
    torch.manual_seed(3)
    network = create(name, 3, 3, 16, **SMALL[name])
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) * 0.1)
    network.eval()
    made = Trained(network, name, SMALL[name], ("a", "b", "c"), 3, 16, "tiny", MEAN, STD, 71.25, {"epochs": 3})
    return replace(made, **changes)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(10, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def data() -> Prepared:
    pixels = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return Prepared(pixels, labels, pixels, labels, "tiny", ("a", "b", "c"), MEAN, STD)


@pytest.mark.parametrize("name", SMALL)
def test_round_trip(name: str, images: Tensor, tmp_path: Path) -> None:
    before = trained(name)
    write_trained(tmp_path / "one", before)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    after = read_trained(tmp_path / "one")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(after.logits(images), before.logits(images))
    assert not any(module.training for module in after.network.modules())
    assert not any(parameter.requires_grad for parameter in after.network.parameters())
    for key in ("name", "options", "classes", "channels", "size", "dataset", "mean", "std", "accuracy", "notes"):
        assert getattr(after, key) == getattr(before, key), key
    write_trained(tmp_path / "two", after)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_parameters_in_one_buffer_are_written_apart(images: Tensor, tmp_path: Path) -> None:
    """As the trainers keep them."""
    one = trained()
    expected = one.logits(images)
    write_trained(tmp_path / "apart", one)
    parameters = list(one.network.parameters())
    flat = torch.cat([p.detach().flatten() for p in parameters])
    for p, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.data = part.view_as(p)
    write_trained(tmp_path / "flat", one)
    assert (tmp_path / "apart").read_bytes() == (tmp_path / "flat").read_bytes()
    assert torch.equal(read_trained(tmp_path / "flat").logits(images), expected)


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_embedding_belong_together(name: str, images: Tensor) -> None:
    one = trained(name)
    one.network.train()
    logits, features = one.logits(images, batch=4), embed(one.network, images, batch=3)
    assert all(module.training for module in one.network.modules())
    last = [m for m in one.network.modules() if isinstance(m, nn.Linear)][-1]
    assert features.shape == (10, last.in_features)
    assert features.dtype == logits.dtype == torch.float32
    assert torch.allclose(last(features), logits, atol=1e-4)
    assert torch.allclose(one.network.eval()(images), logits, atol=1e-4)
    assert not any(m._forward_pre_hooks for m in one.network.modules())
    # Students learn from them, which tensors of inference mode do not allow.
    student = torch.randn(10, 3, requires_grad=True)
    F.kl_div(student.log_softmax(1), logits.softmax(1), reduction="batchmean").backward()
    assert student.grad is not None


def test_convnet_embedding_is_its_own(images: Tensor) -> None:
    network = trained().network
    assert torch.allclose(embed(network, images), network.embed(images), atol=1e-6)


def test_the_layer_that_runs_last_counts(images: Tensor) -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = nn.Linear(5, 3), nn.Linear(768, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.flatten(1)).relu())

    network = Reversed()
    assert torch.equal(embed(network, images), network.body(images.flatten(1)).relu())


def test_networks_without_an_embedding(images: Tensor) -> None:
    with pytest.raises(ValueError, match="runs no nn.Linear"):
        embed(nn.Sequential(nn.Conv2d(3, 3, 16), nn.Flatten()), images)
    with pytest.raises(ValueError, match="not those of its last nn.Linear"):
        embed(nn.Sequential(nn.Linear(16, 4), nn.Flatten(), nn.Unflatten(1, (3, -1)), nn.Flatten()), images)
    gated = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.Unflatten(1, (8, 1, 1)), nn.Conv2d(8, 3, 1), nn.Flatten())
    with pytest.raises(ValueError, match="not those of its last nn.Linear"):
        embed(gated, images)
    assert not any(m._forward_pre_hooks for m in gated.modules())


def test_other_standardisation(data: Prepared, tmp_path: Path) -> None:
    """A teacher gets the images of its own standardisation, whatever the dataset's is; its file stays the same."""
    one = trained(mean=(0.5,) * 3, std=(0.5,) * 3)
    write_trained(tmp_path / "own", one)
    teacher = load_teacher(tmp_path / "own", data)
    assert (teacher.mean, teacher.std) == (MEAN, STD)
    expected = one.logits((data.train_images / 255 - 0.5) / 0.5)
    assert torch.allclose(teacher.logits(data.standardised(data.train_images)), expected, atol=1e-5)
    assert embed(teacher.network, data.standardised(data.train_images)).shape == (6, 64)
    write_trained(tmp_path / "again", teacher)
    assert (tmp_path / "own").read_bytes() == (tmp_path / "again").read_bytes()
    assert for_input(one, (0.5,) * 3, [0.5] * 3) is one


def test_teacher_has_to_fit_the_dataset(data: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "teacher"
    write_trained(path, trained())
    assert load_teacher(path, data).accuracy == 71.25
    for other, words in (
        (replace(data, classes=("a", "c", "b")), "in another order; train a teacher on tiny"),
        (replace(data, classes=("a", "b", "c", "d")), r"those of tiny \(4\) \(3\); train"),
        (replace(data, train_images=data.train_images[..., :8, :8]), r"\[3, 16, 16\], those of tiny are \[3, 8, 8\]"),
    ):
        with pytest.raises(WeightsError, match=words) as refusal:
            load_teacher(path, other)
        assert str(path) in str(refusal.value)


@pytest.mark.parametrize("inside", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_foreign_state_dicts(data: Prepared, images: Tensor, tmp_path: Path, inside: str | None, prefix: str) -> None:
    one = trained("mobilenet")
    state: dict[str, Any] = {prefix + key: tensor for key, tensor in one.network.state_dict().items()}
    torch.save({inside: state, "epoch": 3} if inside else state, tmp_path / "one.pth")
    teacher = load_teacher(tmp_path / "one.pth", data, "mobilenet", SMALL["mobilenet"])
    assert torch.equal(teacher.logits(images), one.logits(images))
    assert (teacher.mean, teacher.accuracy, teacher.notes) == (MEAN, None, {"state_dict": "one.pth"})
    write_trained(tmp_path / "kept", teacher)
    assert torch.equal(load_teacher(tmp_path / "kept", data).logits(images), one.logits(images))
    # As torch wrote them before 0.4.1.
    torch.save({key: tensor for key, tensor in state.items() if "num_batches" not in key}, tmp_path / "one.pth")
    old = load_teacher(tmp_path / "one.pth", data, "mobilenet", SMALL["mobilenet"])
    assert torch.equal(old.logits(images), one.logits(images))


def test_foreign_state_dicts_may_be_of_another_standardisation(data: Prepared, images: Tensor, tmp_path: Path) -> None:
    one, mean, std = trained("resnet"), (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    torch.save(one.network.state_dict(), tmp_path / "one.pth")
    teacher = load_teacher(tmp_path / "one.pth", data, "resnet", SMALL["resnet"], mean=mean, std=std)
    unit = ValueRange.standardised(data.mean, data.std).to_unit(images)
    wanted = one.logits(ValueRange.standardised(mean, std).from_unit(unit))
    assert torch.allclose(teacher.logits(images), wanted, atol=1e-5)
    write_trained(tmp_path / "kept", teacher)
    assert torch.allclose(load_teacher(tmp_path / "kept", data).logits(images), wanted, atol=1e-5)
    for wrong in ((0.5,), (0.5, 0.5, 0.0)):
        with pytest.raises(WeightsError, match=r"one\.pth.*give a mean and a deviation above 0 of each"):
            load_teacher(tmp_path / "one.pth", data, "resnet", SMALL["resnet"], mean=wrong, std=wrong)


def test_foreign_files_are_refused(data: Prepared, tmp_path: Path) -> None:
    path, state = tmp_path / "x.pt", trained().network.state_dict()

    def refused(words: str, network: str | None = "convnet", **options: Any) -> None:
        with pytest.raises(WeightsError, match=words) as refusal:
            load_teacher(path, data, network, options)
        assert str(path) in str(refusal.value)
        assert "\n" not in str(refusal.value)

    refused("no such file")
    torch.save(trained().network, path)
    refused("asks to run diver.networks.convnet.ConvNet; save the network")
    torch.save([1, 2], path)
    refused("not a state dict")
    torch.save(state, path)
    refused("give the network and options", network=None)
    refused(r"lacks 'features\.8\.bias' and 3 more; give the network and options", width=4)
    refused(r"features\.0\.weight is \[4, 3, 3, 3\], the network's is \[8, 3, 3, 3\]", width=8, depth=2)
    refused("has an unknown", width=4, depth=1)
    refused("widht", widht=4)
    refused("nearest|did you mean", network="convnt")
    path.write_bytes(path.read_bytes()[:300])
    refused("truncated or not a file of torch.save")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "net"

    def refused(words: str) -> None:
        with pytest.raises(WeightsError, match=words) as refusal:
            read_trained(path)
        assert str(path) in str(refusal.value)
        assert "; give" in str(refusal.value) or "; train it again" in str(refusal.value)

    refused("no such file")
    write_trained(path, trained())
    tensors, header = read_tensors(path)
    # They are mapped to the file, which is about to be written over.
    tensors, whole = {name: tensor.clone() for name, tensor in tensors.items()}, path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused("truncated")
    path.write_bytes(b"PK" + whole)
    refused("not a safetensors file")
    write_tensors(path, {"images": torch.zeros(3)}, {"format": "distilled set 1"})
    refused("not a trained network, format")
    for change, words in (
        ({"name": "convnt"}, "cannot be built.*convnt"),
        ({"options": {"widht": 3}}, "cannot be built.*widht"),
        ({"options": {"width": 8, "depth": 2}}, r"is \[4.*the network's is \[8"),
        ({"options": {"width": 4, "depth": 1}}, "has an unknown"),
        ({"options": {"width": 4, "depth": 3}}, "lacks"),
        ({"mean": [0.5], "std": [0.5]}, "mean and std have 1 channels"),
        ({"std": [1, 1, 0]}, "positive"),
        ({"accuracy": 101}, "accuracy"),
        ({"more": 1}, "more"),
    ):
        write_tensors(path, tensors, header | change)
        refused(words)
    tensors["classifier.bias"][1] = float("nan")
    write_tensors(path, tensors, header)
    refused("classifier.bias has values that are not finite")


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "net"
    broken = trained()
    broken.network.classifier.bias.data[0] = torch.inf
    for wrong, words in (
        (broken, "not finite"),
        (replace(trained(), network=trained().network.double()), "float64, not float32"),
        (trained(options={"width": 8, "depth": 2}), "the network's is"),
        (trained(classes=("a", "b")), "the network's is"),
        (trained(mean=(0.5,), std=(0.5,)), "1 channels"),
        (trained(accuracy=-1.0), "accuracy"),
        (trained(notes={"loss": float("nan")}), "JSON"),
    ):
        with pytest.raises(WeightsError, match=f"not written.*{words}"):
            write_trained(path, wrong)
    assert not path.exists()


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_pretrained_weights_of_timm(name: str, data: Prepared, tmp_path: Path) -> None:
    """From a local directory, which takes timm's way to a model on the hub but for the download."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    size = {"img_size": 16} if name == "test_vit" else {}
    model = timm.create_model(name, num_classes=3, **size).eval()
    save_for_hf(model, tmp_path / "hub")
    source = f"timm:local-dir:{tmp_path / 'hub'}"
    state = torch.random.get_rng_state()
    teacher = load_teacher(source, data)
    assert torch.equal(torch.random.get_rng_state(), state)
    about = json.loads((tmp_path / "hub/config.json").read_text())["pretrained_cfg"]
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model((data.train_images / 255 - mean) / std)
    assert torch.allclose(teacher.logits(data.standardised(data.train_images)), expected, atol=1e-4)
    write_trained(tmp_path / "kept", teacher)
    again = load_teacher(tmp_path / "kept", data).logits(data.standardised(data.train_images))
    assert torch.allclose(again, expected, atol=1e-4)
    with pytest.raises(WeightsError, match="has 3 classes, tiny has 4; train a teacher on tiny"):
        load_teacher(source, replace(data, classes=("a", "b", "c", "d")))


def test_pretrained_weights_that_cannot_be_had(data: Prepared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    thousand = replace(data, classes=tuple(map(str, range(1000))))
    for name, given, words in (
        ("test_vit", data, "has 1000 classes, tiny has 3; train a teacher on tiny"),
        ("test_vitt", data, "no such network"),
        ("test_vit.nowhere", data, "nowhere"),
        ("vit_base_patch16_18x2_224", data, "no pretrained weights"),
        ("hf-hub:nobody/nothing", thousand, "neither in the local cache.*HF_HOME"),
        (f"local-dir:{tmp_path}", data, "local cache|cannot be loaded"),
    ):
        with pytest.raises(WeightsError, match=words) as refusal:
            load_teacher(f"timm:{name}", given)
        assert f"timm:{name}" in str(refusal.value)
