"""Cluster captioned images and give each cluster its text and the images that show it."""

from pathlib import Path

from diver.config.native import SETTINGS
from diver.config.text import CaptionConfig
from diver.data.prepared import Prepared
from diver.places import placed
from diver.prior.load import load_placed
from diver.progress import step_log
from diver.recover.latents import Latents
from diver.recover.texts import captions_by_place, edits_texts, vlcp_texts, write_texts
from diver.text.prepare import Embedded, names_of

wildcards, params = snakemake.wildcards, snakemake.params
with step_log(
    snakemake.log[0], snakemake.threads, f"texts of {wildcards.stage1}, IPC {wildcards.ipc}", snakemake.resources.gpu
) as progress:
    data, ipc = Prepared.read(snakemake.input.prepared), int(wildcards.ipc)
    made = placed(params.artefacts, snakemake.input)
    prior = load_placed(params.prior, params.options, snakemake.input)
    config = SETTINGS[params.method](**params.settings)
    if params.method == "edits":
        found = edits_texts(Embedded.read(made["features"]), data, ipc, prior, config, Path(params.answers), progress)
    else:
        names = names_of(data, CaptionConfig(**params.captions).of(wildcards.dataset))
        captions = captions_by_place(made["captions"], names)
        found = vlcp_texts(Latents.open(made["latents"], data, prior), captions, data, ipc, prior, config, progress)
    write_texts(snakemake.output.texts, found)
    for one in (one for one in found if one.fault):
        print(f"class {one.label}, image {one.number}: {one.by} text, because {one.fault}")
