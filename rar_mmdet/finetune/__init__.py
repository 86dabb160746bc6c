"""Teaching a ranker to rank: questions with known answers, made from labelled photos."""

from rar_mmdet.finetune.examples import MODES, RankingExample

__all__ = ["MODES", "RankingExample"]
