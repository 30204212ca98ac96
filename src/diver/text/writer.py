"""A language model that writes one text for several captions, checked, and kept on disk by what it was asked."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import torch

from diver.config.text import MergeConfig
from diver.tensorfile import canonical_json, file_checksum
from diver.text.features import load_model
from diver.text.merge import Vocabulary, names_class
from diver.text.resources import TextError, resolve
from diver.text.tokens import Counter
from diver.workers import best_device

Messages = list[dict[str, str]]
EXTRACTIVE = "extractive"
WEIGHTS = {".safetensors", ".bin", ".gguf", ".json", ".txt", ".model"}
ROLE = "You analyse texts. You answer with one sentence and nothing else."
REQUEST = """These captions are of similar pictures of a {name}:
{captions}
Write one sentence of at most 40 words that could stand for all of these pictures. Keep what several captions say, add \
what only one of them says where it contradicts none, and leave out their turns of phrase. Say "{name}", not a broader \
word."""
AGAIN = 'That {fault}. Write it again, in at most 40 words and with the word "{name}" in it.'


@dataclass(frozen=True)
class Written:
    """A text, what wrote it, and why it was not the model, "" where it was."""

    text: str
    by: str
    fault: str = ""


class LocalModel:
    """A text-generation model of transformers, read when it is first asked."""

    def __init__(self, source: str):
        self.source = source
        self.path = Path(resolve(source))

    @property
    def identity(self) -> str:
        """What stands for the model in the cache: the digest of its files, or its name where it is on the hub."""
        if self.path.is_file():
            return file_checksum(self.path)
        if self.path.is_dir():
            files = sorted(file for file in self.path.rglob("*") if file.suffix in WEIGHTS)
            sums = [f"{file.relative_to(self.path)} {file_checksum(file)}" for file in files]
            return hashlib.sha256("\n".join(sums).encode()).hexdigest()
        return self.source

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        # A file of GGUF is named beside its folder.
        inside = {"gguf_file": self.path.name} if self.path.is_file() else {}
        where = str(self.path.parent) if inside else self.source
        device = best_device()
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        model = load_model(AutoModelForCausalLM, where, dtype=dtype, **inside)
        return model.eval().to(device), load_model(AutoTokenizer, where, **inside)

    @torch.inference_mode()
    def ask(self, messages: Messages, limit: int) -> str:
        """Its likeliest answer, which is always the same, of at most `limit` new tokens."""
        model, tokenizer = self._loaded
        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            given = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        else:
            given = tokenizer("\n\n".join(message["content"] for message in messages) + "\n", return_tensors="pt")
        given = {key: given[key].to(model.device) for key in ("input_ids", "attention_mask")}
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        # The model's own settings for sampling do not apply.
        answer = model.generate(
            **given, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=limit, pad_token_id=pad
        )
        return str(tokenizer.decode(answer[0, given["input_ids"].shape[1] :], skip_special_tokens=True))


class Service:
    """An OpenAI-compatible service. Its key is read from the environment and is written nowhere."""

    def __init__(self, config: MergeConfig):
        if not config.service_model:
            raise TextError(f"{config.source}: service_model: give the name of the service's model")
        self.config = config
        self.identity = f"{config.source.rstrip('/')} {config.service_model}"

    def ask(self, messages: Messages, limit: int) -> str:
        """Its answer at temperature 0. Raises TextError if there is none, with the status and the remedy."""
        config, key = self.config, os.environ.get(self.config.key_variable, "")
        asked = {"model": config.service_model, "messages": messages, "max_tokens": limit, "temperature": 0, "seed": 0}
        url = f"{config.source.rstrip('/')}/chat/completions"
        try:
            answer = httpx.post(
                url, json=asked, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=config.timeout
            )
            answer.raise_for_status()
            return str(answer.json()["choices"][0]["message"]["content"] or "")
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            remedy = f"set {config.key_variable} to its key" if status in (401, 403) else "check its address and model"
            raise TextError(f"{url}: answered {status}; {remedy}") from error
        except httpx.HTTPError as error:
            raise TextError(f"{url}: no answer ({error}); check it, or take merge.source: extractive") from error
        except (ValueError, LookupError, TypeError) as error:
            raise TextError(f"{url}: its answer is not of the form of a chat completion ({error})") from error


class Writer:
    """Writes a text for a cluster, as `config.source` says. `cache`: folder of answers, None to keep none."""

    def __init__(self, config: MergeConfig, count: Counter, cache: Path | None = None):
        self.config, self.count, self.cache = config, count, cache
        source = config.source
        self.model: LocalModel | Service | None = None
        if source != EXTRACTIVE:
            self.model = Service(config) if source.startswith(("http://", "https://")) else LocalModel(source)

    @cached_property
    def _identity(self) -> str:
        return self.model.identity if self.model else EXTRACTIVE

    def __call__(self, captions: Sequence[str], vocabulary: Vocabulary) -> Written:
        """A text of at most `max_tokens` tokens that has the class's name in it.

        A model that fails at one as often as it is asked is replaced by the extractive merge, which `fault` records.
        """
        limit, model = self.config.max_tokens, self.model
        if model is None:
            return Written(vocabulary.extract(captions, self.count, limit), EXTRACTIVE)
        listed = "\n".join(f"- {caption}" for caption in captions)
        messages: Messages = [
            {"role": "system", "content": ROLE},
            {"role": "user", "content": REQUEST.format(name=vocabulary.name, captions=listed)},
        ]
        fault = ""
        for _ in range(self.config.attempts):
            text = _tidy(self._kept(messages, model))
            fault = self._fault(text, vocabulary.name)
            if not fault:
                return Written(text, self.config.source)
            messages = [
                *messages,
                {"role": "assistant", "content": text or "(nothing)"},
                {"role": "user", "content": AGAIN.format(fault=fault, name=vocabulary.name)},
            ]
        return Written(vocabulary.extract(captions, self.count, limit), EXTRACTIVE, f"the model's text {fault}")

    def _fault(self, text: str, name: str) -> str:
        if not text:
            return "is empty"
        if (length := self.count(text)) > self.config.max_tokens:
            return f"has {length} tokens, more than {self.config.max_tokens}"
        return "" if names_class(text, name) else f"does not say {name!r}"

    def _kept(self, messages: Messages, model: LocalModel | Service) -> str:
        """The answer that was given to the same question before, or a new one."""
        # Twice the limit, so that what is too long is seen to be.
        limit = self.config.max_tokens
        if self.cache is None:
            return model.ask(messages, 2 * limit)
        asked = {"model": self._identity, "messages": messages, "limit": limit}
        path = self.cache / f"{hashlib.sha256(canonical_json(asked).encode()).hexdigest()}.json"
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["answer"])
        except FileNotFoundError:
            pass
        except (ValueError, LookupError, TypeError) as error:
            raise TextError(f"{path}: damaged ({error}); remove it, and the model is asked again") from error
        answer = model.ask(messages, 2 * limit)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(canonical_json({"answer": answer, **asked}), encoding="utf-8")
        os.replace(part, path)
        return answer


def _tidy(answer: str) -> str:
    """An answer on one line, without the quotation marks around it."""
    return " ".join(answer.split()).strip("\"'“”` ")
