"""A synthetic tidy table of students for the tests of the report."""

import numpy as np
import pandas as pd

from diver.report.labels import Labels

LADDER = ["none", "raw", "inheritance", "everywhere", "diver"]
LABELS = Labels(
    stage1={"random": "Random", "dm": "DM"},
    stage2={
        "none": "stage-1 set",
        "vae": "VAE only",
        "raw": "raw DiT",
        "predd": "PReDD",
        "inheritance": "inheritance",
        "everywhere": "inheritance + guidance everywhere",
        "diver": "DIVER",
    },
    architecture={"convnet": "ConvNet", "resnet": "ResNet", "vit": "ViT", "mobilenet": "MobileNet"},
    dataset={"cifar10": "CIFAR-10"},
)
EFFECT = {"none": 0.0, "vae": -1.5, "raw": -3.0, "predd": 0.5, "inheritance": -2.0, "everywhere": 1.0, "diver": 2.5}


def make_table(seeds: int = 3, seed: int = 0, ipcs: tuple[int, ...] = (1, 10)) -> pd.DataFrame:
    """The embedded study's grid, a row per student, with made-up accuracies."""
    generator = np.random.default_rng(seed)
    level = {"convnet": 6.0, "resnet": 2.0, "vit": 0.0, "mobilenet": -1.0}
    rows = []
    for ipc in ipcs:
        for stage1 in ("random", "dm"):
            for stage2 in EFFECT if stage1 == "dm" else ("none", "vae", "predd", "diver"):
                for scale in ("matched", "as-published") if stage2 == "diver" else ("matched",):
                    for architecture, offset in level.items():
                        for number in range(seeds):
                            last = 16 + 12 * (ipc > 1) + offset + EFFECT[stage2] - 2 * (scale != "matched")
                            last += generator.normal(0, 0.7)
                            rows.append(
                                {
                                    "study": "test",
                                    "dataset": "cifar10",
                                    "ipc": ipc,
                                    "stage1": stage1,
                                    "stage2": stage2,
                                    "scale": scale,
                                    "architecture": architecture,
                                    "role": "proxy" if architecture == "convnet" else "unseen",
                                    "protocol": "glad-eval",
                                    "departures": "epochs=50; batch=25",
                                    "quirks": "ema_per_epoch",
                                    "reported": "last",
                                    "seed": number,
                                    "accuracy_last": round(last, 2),
                                    "accuracy_best": round(last + generator.uniform(0, 0.5), 2),
                                    "diverged": False,
                                }
                            )
    return pd.DataFrame(rows)
