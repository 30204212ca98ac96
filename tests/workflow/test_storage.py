"""profiles/kubernetes as far as it goes without a cluster: its plan, and a study whose files are all in a bucket."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import torch
import yaml
from moto.server import ThreadedMotoServer
from running import SNAKEMAKE, copy_project, environment

from diver.sets import DistilledSet

STUDY = "config/stored.yaml"


pytestmark = pytest.mark.slow


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server on this machine, of which Snakemake knows by the variables that the profile names."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    for name, value in {"ACCESS_KEY": "key", "SECRET_KEY": "secret", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"SNAKEMAKE_STORAGE_S3_{name}", value)
    monkeypatch.setenv("SNAKEMAKE_STORAGE_S3_ENDPOINT_URL", address)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    yield address
    server.stop()


def run(folder: Path, *arguments: str) -> str:
    command = [SNAKEMAKE, *arguments, "--configfile", STUDY]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def test_a_study_lives_in_a_bucket(endpoint: str, tmp_path: Path) -> None:
    folder = copy_project(tmp_path)
    study = yaml.safe_load((folder / "config/test.yaml").read_text())
    study["name"] = "stored"
    system = {"label": "D4M", "method": "d4m", "settings": {"respacing": "4", "cfg_scale": 1}}
    study["preparations"] = {"latents": {"per_class": 20}}
    released = {"label": "Released", "method": "released", "settings": {"path": "data/released/cifar10.pt"}}
    study["distill"] = {"random": study["distill"]["random"], "released": released, "d4m": system}
    study["recover"] = {"vae": {**study["recover"]["vae"], "applies_to": ["random", "released", "d4m"]}}
    study["students"].update(as_published={})
    study["report"] = {}
    (folder / STUDY).write_text(yaml.safe_dump(study))
    store = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    store.create_bucket(Bucket="bucket")
    # What no rule makes is put there once.
    for path in (folder / "data/shipped/cifar10-slice-prior", folder / "data/shipped/cifar10-prior"):
        for file in (file for file in path.rglob("*") if file.is_file()):
            store.upload_file(str(file), "bucket", f"study/{file.relative_to(folder)}")
    images, labels = torch.randn(20, 3, 32, 32), torch.arange(10).repeat_interleave(2)
    torch.save({"data": [[images, labels]], "accs_all_exps": {}}, tmp_path / "set.pt")
    store.upload_file(str(tmp_path / "set.pt"), "bucket", "study/data/released/cifar10.pt")
    prefix = ("--default-storage-prefix", "s3://bucket/study")
    planned = run(folder, "--dry-run", "recover", "--profile", "profiles/kubernetes", *prefix)
    assert "recover_set" in planned and "nvidia" in planned
    stored = ("recover", "--default-storage-provider", "s3", *prefix, "--cores", "2")
    run(folder, *stored)
    other = tmp_path / "released.safetensors"
    keys = {one["Key"] for one in store.list_objects_v2(Bucket="bucket")["Contents"]}
    made = "study/results/stored/recovered/cifar10-slice/ipc2/random/vae.safetensors"
    assert {made, "study/data/prepared/cifar10-slice.safetensors"} <= keys
    assert not (folder / "results/stored/recovered").exists() and not (folder / "data/prepared").exists()
    store.download_file("bucket", made, str(tmp_path / "set.safetensors"))
    store.download_file("bucket", "study/results/stored/distilled/cifar10-slice/ipc2/released.safetensors", str(other))
    assert torch.equal(DistilledSet.read(other).images, images)
    store.download_file("bucket", "study/results/stored/distilled/cifar10-slice/ipc2/d4m.safetensors", str(other))
    assert DistilledSet.read(other).steps[0].parameters["prior"] == "data/shipped/cifar10-prior"
    assert [step.method for step in DistilledSet.read(tmp_path / "set.safetensors").steps] == ["random", "vae"]
    assert "Nothing to be done" in run(folder, *stored)
