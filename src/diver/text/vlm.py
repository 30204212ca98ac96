"""Captions by a vision-language model, any that transformers runs by its image-text-to-text interface."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diver.config.text import CaptionConfig
from diver.text.features import load_model
from diver.text.resources import TextError
from diver.text.tokens import Counter
from diver.workers import best_device

# LLaVA-1.5's form of a conversation, for a processor that has no template of its own.
PLAIN = "USER: {image}\n{instruction} ASSISTANT:"


class Captioner:
    """A model and its processor, on the best device. Greedy, so that the same image always has the same caption."""

    def __init__(self, config: CaptionConfig, count: Counter):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        device = best_device()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.config, self.count = config, count
        self.processor = load_model(AutoProcessor, config.model)
        self.model = load_model(AutoModelForImageTextToText, config.model, dtype=dtype).eval().to(device)
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None or not hasattr(self.processor, "image_processor"):
            raise TextError(
                f"{config.model}: its processor takes no images and words; give an image-text-to-text model"
            )
        # Answers of a batch have to begin at one place.
        tokenizer.padding_side = "left"
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def _prompt(self, name: str) -> str:
        instruction = self.config.instruction.format(name)
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": instruction}]
            conversation = [{"role": "user", "content": content}]
            return str(self.processor.apply_chat_template(conversation, add_generation_prompt=True))
        image = getattr(self.processor, "image_token", "<image>")
        return PLAIN.format(image=image, instruction=instruction)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Tensor], names: Sequence[str]) -> list[str]:
        """Captions of images uint8 [C, H, W] of classes called `names`: one line each, below the token limit.

        What is too long loses its last words; an answer without words becomes the class's name.
        """
        from torchvision.transforms.functional import to_pil_image

        pictures = [to_pil_image(image.expand(3, -1, -1)) for image in images]
        given: Any = self.processor(
            images=pictures, text=[self._prompt(name) for name in names], padding=True, return_tensors="pt"
        ).to(self.model.device, self.model.dtype)
        answers = self.model.generate(
            **given, do_sample=False, max_new_tokens=self.config.max_tokens, pad_token_id=self.pad
        )
        said = self.processor.batch_decode(answers[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        lines = [" ".join(text.split()) or name for text, name in zip(said, names, strict=True)]
        return [self.count.cut(line, self.config.max_tokens) for line in lines]
