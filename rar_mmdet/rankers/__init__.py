"""Shortlist -> permutation and log-probabilities: prompts, parsing, scoring, cache, and one file per way to a model."""

from rar_mmdet.rankers.asking import AskingRanker
from rar_mmdet.rankers.base import IdentityRanker, Ranker, ScriptedRanker
from rar_mmdet.rankers.openai_ranker import OpenAIRanker
from rar_mmdet.rankers.parsing import Parsed, parse_ranking
from rar_mmdet.rankers.questions import Answer, Question
from rar_mmdet.rankers.transformers_ranker import TransformersRanker

__all__ = [
    "Answer",
    "AskingRanker",
    "IdentityRanker",
    "OpenAIRanker",
    "Parsed",
    "Question",
    "Ranker",
    "ScriptedRanker",
    "TransformersRanker",
    "parse_ranking",
]
