"""Measure a trained prior and write its card."""

import json
from pathlib import Path

import torch
from torchvision.utils import save_image

from diver.data.prepared import Prepared
from diver.prior.card import draw_losses, write_card
from diver.prior.judge import agreement, load_classifier, sample_classes
from diver.prior.load import load_prior
from diver.progress import step_log

PER_CLASS, GUIDANCE, SHOWN = 50, (1.0, 4.0), 10

with step_log(snakemake.log[0], snakemake.threads, "prior's quality", snakemake.resources.gpu) as progress:
    data, prior = Prepared.read(snakemake.input.prepared), load_prior(Path(snakemake.input.index).parent)
    vae, dit = (json.loads(Path(snakemake.input[key]).read_text()) for key in ("vae_facts", "dit_facts"))
    classifier = load_classifier(snakemake.input.classifier) if snakemake.input.classifier else None
    quality = {"psnr_test_db": vae["psnr_test_db"], "agreement": {}}
    if classifier:
        quality["classifier_accuracy"] = agreement(classifier, data.test_images.float() / 255, data.test_labels)
    rows = []
    for scale in GUIDANCE:
        images, labels = sample_classes(prior, PER_CLASS, scale, seed=0, progress=progress)
        if classifier:
            quality["agreement"][str(scale)] = agreement(classifier, images, labels)
        rows.append(images.view(len(data.classes), PER_CLASS, *images.shape[1:])[:, : SHOWN // 2])
    # A row per class: the left half without guidance, the right half at the largest scale.
    grid = torch.cat([rows[0], rows[-1]], 1).flatten(0, 1)
    save_image(grid, snakemake.output.samples, nrow=SHOWN, padding=1)
    draw_losses(snakemake.input.vae_curve, snakemake.input.dit_curve, snakemake.output.curve)
    Path(snakemake.output.facts).write_text(json.dumps(quality, indent=1))
    write_card(snakemake.output.card, data, vae, dit, quality, PER_CLASS)
