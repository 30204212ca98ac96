"""How long a text is to the text encoder of a prior, which takes 77 tokens."""

from dataclasses import dataclass
from typing import Any

from diver.text.features import load_model


@dataclass(frozen=True)
class Counter:
    """Counts the tokens of a text, both ends included."""

    tokenizer: Any

    @classmethod
    def of(cls, source: str) -> "Counter":
        """The tokenizer of a directory, a package or the hub. Raises TextError if there is none."""
        from transformers import AutoTokenizer

        return cls(load_model(AutoTokenizer, source))

    def __call__(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False).input_ids)

    def cut(self, text: str, limit: int) -> str:
        """The text without the last words, as many as it takes to have at most `limit` tokens."""
        words = text.split()
        low, high = 0, len(words)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self(" ".join(words[:middle])) <= limit else (low, middle - 1)
        return " ".join(words[:low])
