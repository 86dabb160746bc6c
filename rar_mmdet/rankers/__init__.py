"""Shortlist -> permutation and log-probabilities: ways to ask, parsing, cache, and one file per way to a model."""

from rar_mmdet.rankers.asking import AskingRanker
from rar_mmdet.rankers.asks import Decide, Generate, Letter, Likelihood, Open, YesNo
from rar_mmdet.rankers.base import IdentityRanker, Ranker, ScriptedRanker
from rar_mmdet.rankers.blip2 import Blip2Ranker
from rar_mmdet.rankers.decisions import DecisionRanker
from rar_mmdet.rankers.loaded_model import Loading
from rar_mmdet.rankers.openai_ranker import OpenAIRanker
from rar_mmdet.rankers.options import Limits
from rar_mmdet.rankers.parsing import Parsed, parse_ranking
from rar_mmdet.rankers.questions import Answer, Ask, Question, Reading
from rar_mmdet.rankers.report import report_table
from rar_mmdet.rankers.server import ServerSettings
from rar_mmdet.rankers.transformers_ranker import TransformersRanker
from rar_mmdet.rankers.vllm_ranker import VLLMRanker

__all__ = [
    "Answer",
    "Ask",
    "AskingRanker",
    "Blip2Ranker",
    "Decide",
    "DecisionRanker",
    "Generate",
    "IdentityRanker",
    "Letter",
    "Likelihood",
    "Limits",
    "Loading",
    "Open",
    "OpenAIRanker",
    "Parsed",
    "Question",
    "Ranker",
    "Reading",
    "ScriptedRanker",
    "ServerSettings",
    "TransformersRanker",
    "VLLMRanker",
    "YesNo",
    "parse_ranking",
    "report_table",
]
