"""Features of captioned images and of their captions."""

from diver.config.text import CaptionConfig, FeatureConfig
from diver.data.prepared import Prepared
from diver.progress import step_log
from diver.text.prepare import embed_captions, names_of

wildcards, params = snakemake.wildcards, snakemake.params
with step_log(
    snakemake.log[0], snakemake.threads, f"features of {wildcards.dataset}", snakemake.resources.gpu
) as progress:
    data = Prepared.read(snakemake.input.prepared)
    embed_captions(
        data.train_images,
        names_of(data, CaptionConfig(**params.captions).of(wildcards.dataset)),
        snakemake.input.captions,
        FeatureConfig(**params.settings),
        snakemake.output.features,
        progress,
    )
