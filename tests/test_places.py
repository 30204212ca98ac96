"""Paths of parameters where a job finds its files."""

import pytest

from diver.places import placed

COPY = ".snakemake/storage/s3/bucket/"
FILES = ["data/local/a.pt", f"{COPY}data/prior/model_index.json", f"{COPY}data/prior/vae/config.json", "/abs/net.pt"]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("data/prior", f"{COPY}data/prior"),
        ("data/prior/vae/config.json", f"{COPY}data/prior/vae/config.json"),
        ("data/local/a.pt", "data/local/a.pt"),
        ("/abs/net.pt", "/abs/net.pt"),
        ("data/pri", "data/pri"),
        ("facebook/DiT-XL-2-256", "facebook/DiT-XL-2-256"),
        ("vae", "vae"),
        ("", ""),
        ({"network": "data/prior", "iterations": 3, "more": ["data/prior", None]},) * 2,
    ],
)
def test_only_paths_of_input_files_are_placed(given: object, found: object) -> None:
    if isinstance(given, dict):
        found = {"network": f"{COPY}data/prior", "iterations": 3, "more": [f"{COPY}data/prior", None]}
    assert placed(given, FILES) == found
