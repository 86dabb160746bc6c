"""Name finders that ask a language model: in its own words, by BLIP-2's three questions, or by likelihood.

The model is any `AskingRanker`: a local one, or one behind a server. Its answers are kept as those of rankers are, so
that a run that was stopped goes on, and draws that share photos share answers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from rar_mmdet.classification.naming.discovery import DiscoveryPhoto
from rar_mmdet.classification.naming.finders import GUESSES
from rar_mmdet.classification.naming.spelling import names_in, spelling_key
from rar_mmdet.classification.vectors import PhotoVectors, encode_names, whole_photo
from rar_mmdet.errors import ConfigError
from rar_mmdet.rankers.base import Ranker
from rar_mmdet.rankers.questions import Question
from rar_mmdet.regions import RegionCropper
from rar_mmdet.structures import Shortlist

__all__ = ["BLIP2_QUESTIONS", "QUESTIONS", "AttributeFinder", "Blip2Finder", "MllmFinder", "Talker"]

PHOTOS_PER_QUESTION = 64  # asked about together; a stopped run loses at most these

# Ours. {kind} is the set's super-category, such as "bird" or "car model"; the second asks for look-alikes, too, because
# a name that is right for one photo of a class is often a look-alike's on another.
QUESTIONS = (
    "What {kind} is in this photo? Answer with its most specific common name and nothing else.",
    "Name the three {kind} names that fit this photo best, the best first, one per line and nothing else.",
    "Look at the details that tell one {kind} from another. Which {kind} is it? Answer with the name only.",
)
# The three experiments of vic's baseline (caption, list, single), in the form BLIP-2 was trained on. Wording ours; what
# becomes of a reply is as published: cut at commas, lower case, "object" where nothing is left.
BLIP2_QUESTIONS = (
    "Question: what is a caption of the photo? Answer:",
    "Question: which objects are in the photo, separated by commas? Answer:",
    "Question: what is the name of the main object in the photo? Answer:",
)


class Talker(Protocol):
    """What a finder needs of a ranker: an `AskingRanker` whose way to ask wants a text."""

    crop_size: int

    def replies(self, questions: Sequence[Question]) -> list[str | None]:
        """The replies in order."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Everything about the model that can change a reply."""
        ...


class MllmFinder:
    """A multimodal language model names each photo several ways (ours; FiNDR shows that its names decide).

    A name's place is decided by how many questions gave it, then by how early in the replies it stood.

    Args:
        talker: the model.
        cropper: how it sees a photo; its size becomes the model's.
        kind: the set's super-category in a word or two; 'object' where nothing is known.
        questions: texts with {kind}.
        guesses: names for each photo.
    """

    name = "mllm"

    def __init__(
        self,
        talker: Talker,
        cropper: RegionCropper,
        *,
        kind: str = "object",
        questions: Sequence[str] = QUESTIONS,
        guesses: int = GUESSES,
    ) -> None:
        if isinstance(questions, str) or not questions:
            raise ConfigError(f"questions must be a list of at least one text, got {questions!r}")
        self.talker, self.cropper, self.guesses = talker, cropper.with_size(talker.crop_size), guesses
        self.kind, self.questions = kind, tuple(question.replace("{kind}", kind) for question in questions)

    def find(self, photos: Sequence[DiscoveryPhoto]) -> Mapping[str, Sequence[str]]:
        """See `NameFinder`.

        Raises:
            RankerError: the model is out of reach.
        """
        found = {}
        with tqdm(total=len(photos), desc="name photos", unit="photo", disable=None) as bar:
            for start in range(0, len(photos), PHOTOS_PER_QUESTION):
                part = photos[start : start + PHOTOS_PER_QUESTION]
                crops = [whole_photo(photo, self.cropper)[0][0] for photo in part]
                asked = [Question(crop, (), words) for crop in crops for words in self.questions]
                replies = iter(self.talker.replies(asked))
                for photo in part:
                    own = [next(replies) or "" for _ in self.questions]
                    found[photo.id] = self._names(own)[: self.guesses]
                bar.update(len(part))
        return found

    def _names(self, replies: Sequence[str]) -> list[str]:
        """The names of one photo, best first; the first spelling of each."""
        votes: dict[str, list[int]] = {}
        spelled: dict[str, str] = {}
        for reply in replies:
            for place, name in enumerate(names_in(reply)):
                key = spelling_key(name)
                spelled.setdefault(key, name)
                votes.setdefault(key, []).append(place)
        return [spelled[key] for key in sorted(votes, key=lambda key: (-len(votes[key]), min(votes[key])))]

    def settings(self) -> Mapping[str, Any]:
        """See `NameFinder`."""
        return {
            "model": dict(self.talker.identity()),
            "cropper": repr(self.cropper),
            "questions": list(self.questions),
            "guesses": self.guesses,
        }


class Blip2Finder(MllmFinder):
    """BLIP-2's three questions (vic's baseline); a photo is never without a name, 'object' being the last resort."""

    name = "blip2"

    def __init__(
        self,
        talker: Talker,
        cropper: RegionCropper,
        *,
        questions: Sequence[str] = BLIP2_QUESTIONS,
        guesses: int = GUESSES,
    ) -> None:
        super().__init__(talker, cropper, questions=questions, guesses=guesses)

    def _names(self, replies: Sequence[str]) -> list[str]:
        # The single name first: of the three it is the one that is asked for a name.
        names = [part.strip().casefold() for reply in reversed(replies) for part in reply.split(",")]
        return list(dict.fromkeys(name for name in names if name)) or ["object"]


class AttributeFinder:
    """Names put together from attributes, by the likelihood that a model gives to each as its answer (ours).

    For models too small to write, and for sets whose names follow a pattern ("{year} {make} {body}"). The encoder
    proposes the `shortlist` nearest of all combinations; the ranker, asked by `Likelihood`, says how likely each is,
    for each way of looking at the photo. Log-likelihoods are added up over the ways.

    Args:
        ranker: asks by likelihood.
        photos: vectors of photos by the encoder that proposes.
        croppers: the ways of looking at a photo.
        pattern: such as "{pattern} {colour} {shape}".
        attributes: name of each part of the pattern -> its values.
        templates: texts with {} for the encoder.
        shortlist: combinations the ranker is asked about.
        guesses: names for each photo, at most; those with less than `share` of the likelihood are left out.
        share: of the likelihood, of all on the shortlist.

    Raises:
        ConfigError: pattern and attributes do not fit.
    """

    name = "mllm"

    def __init__(
        self,
        ranker: Ranker,
        photos: PhotoVectors,
        croppers: Sequence[RegionCropper],
        *,
        pattern: str,
        attributes: Mapping[str, Sequence[str]],
        templates: Sequence[str],
        shortlist: int = 64,
        guesses: int = GUESSES,
        share: float = 0.0,
    ) -> None:
        parts = re.findall(r"\{(\w+)\}", pattern)
        if not parts or sorted(parts) != sorted(attributes) or not all(attributes.values()):
            raise ConfigError(
                f"pattern={pattern!r} has the parts {sorted(parts)}, the attributes are {sorted(attributes)}; expected "
                "the same, each with values"
            )
        values = itertools.product(*(attributes[part] for part in parts))
        self.names = tuple(pattern.format(**dict(zip(parts, chosen, strict=True))) for chosen in values)
        self.ranker, self.photos, self.templates = ranker, photos, tuple(templates)
        self.croppers = tuple(cropper.with_size(ranker.crop_size) for cropper in croppers)
        self.pattern, self.shortlist = pattern, min(shortlist, len(self.names))
        self.guesses, self.share = guesses, share

    def find(self, photos: Sequence[DiscoveryPhoto]) -> Mapping[str, Sequence[str]]:
        """See `NameFinder`."""
        text = encode_names(self.photos.encoder, self.names, self.templates, None)
        ids = (self.photos(photos) @ text).topk(self.shortlist, dim=1).indices
        found: dict[str, list[str]] = {}
        for photo, row, likelihood in zip(photos, ids.tolist(), self._likelihoods(photos, ids), strict=True):
            best = likelihood.argsort(descending=True, stable=True)[: self.guesses].tolist()
            kept = [place for place in best if likelihood[place] >= self.share] or best[:1]
            found[photo.id] = [self.names[row[place]] for place in kept]
        return found

    def _likelihoods(self, photos: Sequence[DiscoveryPhoto], ids: Tensor) -> Iterator[Tensor]:
        """(shortlist,) probabilities of each photo's combinations."""
        with tqdm(total=len(photos), desc="name photos", unit="photo", disable=None) as bar:
            for start in range(0, len(photos), PHOTOS_PER_QUESTION):
                part, own = photos[start : start + PHOTOS_PER_QUESTION], ids[start : start + PHOTOS_PER_QUESTION]
                even = Shortlist(own, torch.full(own.shape, 1 / own.shape[1]))
                total = torch.zeros(own.shape, dtype=torch.float64)
                for cropper in self.croppers:
                    crops = torch.cat([whole_photo(photo, cropper)[0] for photo in part])
                    log_probs = self.ranker.rank(crops, even, self.names).log_probs
                    if log_probs is None:
                        raise ConfigError(
                            "attributes need a ranker that gives likelihoods: ask=dict(type='Likelihood')"
                        )
                    total += log_probs.double()
                yield from total.softmax(dim=1)
                bar.update(len(part))

    def settings(self) -> Mapping[str, Any]:
        """See `NameFinder`."""
        return {
            "model": self.ranker.report().get("model"),
            "pattern": self.pattern,
            "combinations": len(self.names),
            "shortlist": self.shortlist,
            "croppers": [repr(cropper) for cropper in self.croppers],
            "encoder": self.photos.encoder.fingerprint,
            "guesses": self.guesses,
            "share": self.share,
        }
