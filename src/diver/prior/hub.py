"""Files of a prior: a local directory or a model hub's repository, pinned and verified."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download

from diver.prior.base import PriorError
from diver.tensorfile import file_checksum


@dataclass(frozen=True)
class Pin:
    """What is known of a hub repository: a commit, digests of its weights, whether it computes as DiT was published."""

    revision: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    as_published: bool = False


KNOWN = {
    "facebook/DiT-XL-2-256": Pin(
        "eab87f77abd5aef071a632f08807fbaab0b704d0",
        {
            "transformer/diffusion_pytorch_model.bin": (
                "e592d64df5a579691e65d2b245641a00bb070b652e2c5ca775cce20a729ce9d9"
            )
        },
        as_published=True,
    ),
    "facebook/DiT-XL-2-512": Pin("101a3d462b22d64c4afdd4d0c8c59a2c0b961b99", as_published=True),
    "stabilityai/sd-vae-ft-mse": Pin(
        "31f26fdeee1355a5c34592e401dd41e45d25a493",
        {"diffusion_pytorch_model.safetensors": "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815"},
    ),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Pin(
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        {
            "unet/diffusion_pytorch_model.safetensors": (
                "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1"
            )
        },
    ),
}
# Folders whose weights a prior is made of; an autoencoder's repository is one by itself.
PARTS = ("", "transformer/", "unet/", "vae/", "text_encoder/")
SETTINGS = ["model_index.json", "scheduler/*.json", "tokenizer/*", *(f"{part}config.json" for part in PARTS)]


def weights_of(part: str, kind: str) -> list[str]:
    """Patterns of a folder's weights as "safetensors" or "bin", whole or in pieces with their index.

    Copies in half precision, unaveraged weights and other programs' single files have other names.
    """
    stem = "diffusion_pytorch_model"
    if part == "text_encoder/":
        stem = "model" if kind == "safetensors" else "pytorch_model"
    return [f"{part}{stem}{end}" for end in (f".{kind}", f"-*-of-*.{kind}", f".{kind}.index.json")]


def is_hub_name(source: str) -> bool:
    """Whether a text reads as owner/name and nothing of that path is here."""
    path = Path(source)
    return not path.exists() and not path.is_absolute() and not source.startswith(".") and source.count("/") == 1


def fetch(source: str, revision: str | None) -> tuple[Path, str | None]:
    """Local directory of a source, and its commit if it is a hub name.

    A hub name is looked up in the hub's cache and downloaded if it is not there, at `revision` or the known commit:
    what `load_prior` reads and no more, of each network the safetensors or, where there are none, the older files.
    Raises PriorError, with the command to run, when the hub cannot be reached.
    """
    path = Path(source)
    if path.exists():
        return path, None
    if not is_hub_name(source):
        raise PriorError(f"{source}: no such directory or file, and not a hub name (owner/name)")
    known = KNOWN.get(source)
    revision = revision or (known.revision if known else None)
    first = [*SETTINGS, *(name for part in PARTS for name in weights_of(part, "safetensors"))]
    try:
        root = _snapshot(source, revision, first)
        if older := [name for part in PARTS if _lacks_safetensors(root, part) for name in weights_of(part, "bin")]:
            root = _snapshot(source, root.name, older)
    except Exception as error:  # what the hub's client and the network raise is of no common kind
        reason = " ".join(str(error).split())[:160]
        command = f"hf download {source} --revision {revision}" if revision else f"hf download {source}"
        raise PriorError(
            f"{source}: not in the hub's cache, and could not be downloaded ({reason}). Where there is a network: "
            f"`{command}`; or give a local directory in diffusers' layout"
        ) from error
    # The hub's cache names a snapshot's directory after its commit.
    return root, root.name


def _snapshot(source: str, revision: str | None, patterns: list[str]) -> Path:
    return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))


def _lacks_safetensors(root: Path, part: str) -> bool:
    """Whether a folder is a network's, having a configuration, and its weights are in the older format only."""
    return (root / part / "config.json").is_file() and not any(
        any(root.glob(name)) for name in weights_of(part, "safetensors")
    )


def verify(root: Path, expected: Mapping[str, str], source: str, required: bool = True) -> dict[str, str]:
    """Compare the SHA-256 of files under `root` (or of `root`, a file) with what is expected; returns what matched.

    A file that is not there is a fault only if `required`: a repository may hold its weights in another format.
    Raises PriorError naming the file, both digests and the remedy.
    """
    verified = {}
    for name, digest in expected.items():
        path = root if root.is_file() else root / name
        if not path.is_file():
            if required:
                raise PriorError(f"{source}: {name}: no such file, and a SHA-256 is expected for it")
            continue
        found = file_checksum(path)
        if found != digest.lower():
            raise PriorError(
                f"{source}: {name}: SHA-256 is {found}, expected {digest}; the download is damaged or another version: "
                f"delete {path.resolve()} and fetch it again, or give its own digest"
            )
        verified[name] = found
    return verified
