"""Caption training images: from a file, by a vision-language model, or by their measured attributes."""

from diver.config.text import CaptionConfig
from diver.data.prepared import Prepared
from diver.progress import step_log
from diver.recover.latents import chosen_images
from diver.recover.texts import spoken
from diver.text.prepare import caption_images, names_of

wildcards, params = snakemake.wildcards, snakemake.params
with step_log(
    snakemake.log[0], snakemake.threads, f"captions of {wildcards.dataset}", snakemake.resources.gpu
) as progress:
    data = Prepared.read(snakemake.input.prepared)
    config = CaptionConfig(**params.settings).of(wildcards.dataset)
    said = caption_images(
        data.train_images,
        names_of(data, config),
        data.train_labels,
        [spoken(name) for name in data.classes],
        config,
        snakemake.output.captions,
        progress,
        chosen_images(data.train_labels, len(data.classes), config.per_class, params.seed).tolist(),
    )
    print(said)
