"""One text for the captions of a cluster: chosen, put together from their phrases, or written by a language model.

The weight of a word is how many of the cluster's captions have it; stop words, words of the class's name and words that
most captions of the class have weigh nothing. VLCP takes the caption with the most weight. The extractive merge takes
phrases in turn, each the one that adds most weight, times the words' rarity in the class, to what is there already.
"""

import math
import re
from collections import Counter as Tally
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from diver.text.attributes import article
from diver.text.tokens import Counter

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_PHRASE = re.compile(r"[.,;:!?]+(?:\s+|$)")


def words(text: str) -> list[str]:
    """The words of a text in lower case, in order."""
    return _WORD.findall(text.lower())


def names_class(text: str, name: str) -> bool:
    """Whether a text has a class's name in it, as whole words and in any case."""
    pattern = r"[\W_]+".join(map(re.escape, re.findall(r"[^\W_]+", name)))
    return re.search(rf"(?<![^\W_]){pattern}(?:e?s)?(?![^\W_])", text, re.IGNORECASE) is not None


@dataclass(frozen=True)
class Vocabulary:
    """What the captions of a class say: `captions`, all of them; `name`, the class's in words.

    released: as VLCP's code has it, where a word counts as said where it is a part of another, and where words of the
    class's name are looked for in the whole name, so that a name's parts and their parts are taken out too.
    """

    captions: tuple[str, ...]
    name: str
    released: bool = False

    @cached_property
    def _frequency(self) -> Mapping[str, int]:
        """In how many captions a word is."""
        said: Tally[str] = Tally()
        for caption in self.captions:
            said.update(set(words(caption)))
        return said

    def _says(self, caption: str, word: str) -> bool:
        return word in caption if self.released else word in words(caption)

    def weights(self, members: Sequence[str], threshold: float) -> dict[str, int]:
        """In how many of the members' captions a word is; without the words that say nothing of the cluster.

        threshold: share of the class's captions from which a word is common.
        """
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        name, own = self.name.lower(), set(words(self.name))
        said = Tally(word for caption in members for word in dict.fromkeys(words(caption)))
        common = threshold * len(self.captions)
        return {
            word: count
            for word, count in said.items()
            if word not in ENGLISH_STOP_WORDS
            and not (word in name if self.released else word in own)
            and self._frequency.get(word, 0) < common
        }

    def weighted_caption(self, members: Sequence[str], top: int, threshold: float) -> str:
        """The caption with the largest sum of the weights of the cluster's `top` words; the first of equals."""
        weights = self.weights(members, threshold)
        heaviest = sorted(weights, key=lambda word: (-weights[word], word))[:top]
        return max(members, key=lambda text: sum(weights[word] for word in heaviest if self._says(text, word)))

    def extract(self, members: Sequence[str], count: Counter, limit: int, threshold: float = 0.95) -> str:
        """The class's name and the phrases with the most weight, at most `limit` tokens; always the same text.

        Where there are several captions, words that only one of them has weigh nothing. Words that nearly all captions
        of the class have are a form that is filled in, and each place of a form is filled once.
        """
        alone = 1 if len(members) > 1 else 0
        weights: dict[str, float] = {
            word: (said - alone) * math.log(1 + len(self.captions) / self._frequency[word])
            for word, said in self.weights(members, threshold).items()
        }
        phrases = list(dict.fromkeys(phrase for caption in members for phrase in _phrases(caption)))
        text, told = f"a picture of {article(self.name)}", set[str]()
        filled: set[frozenset[str]] = set()
        while phrases:
            gains = [self._gain(phrase, weights, told) for phrase in phrases]
            if not (gain := max(gains)):
                break
            phrase = phrases.pop(gains.index(gain))
            form = self._form(phrase, threshold)
            if (not form or form not in filled) and count(longer := f"{text}, {phrase}") <= limit:
                text, told = longer, told | set(words(phrase))
                filled.add(form)
        return text

    def _form(self, phrase: str, threshold: float) -> frozenset[str]:
        """The words of a phrase that nearly all captions have, without stop words and the class's name."""
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        common, own = threshold * len(self.captions), set(words(self.name))
        found = (word for word in words(phrase) if word not in ENGLISH_STOP_WORDS and word not in own)
        return frozenset(word for word in found if self._frequency.get(word, 0) >= common)

    @staticmethod
    def _gain(phrase: str, weights: Mapping[str, float], told: set[str]) -> float:
        """Weight of the words that a phrase adds, long phrases discounted; 0 if at least half of it is told."""
        own = {word for word in words(phrase) if word in weights}
        new = own - told
        return sum(weights[word] for word in new) / len(own) ** 0.5 if 2 * len(new) > len(own) else 0.0


def _phrases(caption: str) -> list[str]:
    found = (phrase.strip() for phrase in _PHRASE.split(caption))
    return [phrase[0].lower() + phrase[1:] for phrase in found if phrase]
