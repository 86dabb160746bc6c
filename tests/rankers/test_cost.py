"""Money: told before and while it is spent, and a budget that is kept with nothing lost."""

import json
import logging
import pickle
import re

import pytest
import torch

from rar_mmdet.errors import ConfigError, RankerError
from rar_mmdet.rankers import OpenAIRanker, ServerSettings, report_table
from rar_mmdet.rankers.cost import Meter
from rar_mmdet.structures import RankStatus
from rar_mmdet.testing import make_shortlist

NAMES = [f"thing {i}" for i in range(8)]


def with_usage(server, tokens=1000, output=1):
    """The server reports tokens for every answer."""
    plain = server.completion
    usage = {"prompt_tokens": tokens, "completion_tokens": output, "total_tokens": tokens + output}
    server.completion = lambda body, choices=1: {**plain(body, choices), "usage": usage}
    return server


def make_ranker(url, cache=None, concurrency=4, **prices):
    return OpenAIRanker(
        base_url=url, model="m", image_size=8, cache=cache, max_retries=0, limits={"max_fallback_rate": 1.0},
        server={"max_concurrency": concurrency, **prices},
    )  # fmt: skip


def crops(count):
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_budget_is_kept_and_nothing_is_lost(serve, tmp_path):
    """0.001 a request: a budget of 0.0205 pays for the probe and 19 crops, whatever is on the way at once."""
    server, shortlist, cache = with_usage(serve(), output=0), make_shortlist(40, 4, 8), tmp_path / "answers.sqlite"
    ranker = make_ranker(server.url, cache, price_per_million=1.0, budget=0.0205)
    with pytest.raises(RankerError, match=r"the next request might not fit: spent 0.02 of a budget of 0.0205 on 20"):
        ranker.rank(crops(40), shortlist, NAMES)
    assert len(server.bodies) == 20
    again = make_ranker(server.url, cache, price_per_million=1.0, budget=1.0)
    assert (again.rank(crops(40), shortlist, NAMES).status == RankStatus.OK).all()
    assert (again.report()["cached"], again.report()["asked"]) == (19, 21)  # all that was paid for was kept


def test_a_run_within_its_budget_is_whole_and_says_what_it_cost(serve, caplog):
    server = with_usage(serve(), tokens=1000, output=10)
    ranker = make_ranker(server.url, price_per_million=2.0, output_price_per_million=10.0, budget=0.0500)
    with caplog.at_level(logging.WARNING):
        ranking = ranker.rank(crops(20), make_shortlist(20, 4, 8), NAMES)
    assert (ranking.status == RankStatus.OK).all()
    cost = ranker.report()["cost"]
    assert cost == {"spent": pytest.approx(21 * 0.0021), "requests": 21, "input_tokens": 21000, "output_tokens": 210}
    assert "photos leave this machine" in caplog.text
    assert len(re.findall(r"spent .* of a budget of 0.05 on", caplog.text)) >= 4
    assert "cost: 0.0441 for 21 requests, 21,000 input and 210 output tokens" in report_table(ranker.report())
    assert pickle.loads(pickle.dumps(ranker)).meter.spent == 0
    json.dumps(ranker.report())


def test_without_a_price_nothing_is_counted(serve):
    ranker = make_ranker(with_usage(serve()).url)
    ranker.rank(crops(2), make_shortlist(2, 4, 8), NAMES)
    assert "cost" not in ranker.report()


def test_replies_without_usage_cost_nothing_that_is_known():
    meter = Meter(1.0, budget=1.0)
    for body in ("{}", "[]", "no json", '{"usage": null}', '{"usage": {"prompt_tokens": null}}'):
        meter.settle(body)
    assert (meter.spent, meter.reserve(1000)) == (0.0, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 5.0}, "budget=5.0 must be above 0 and needs price_per_million"),
        ({"budget": 0.0, "price_per_million": 1.0}, "budget=0.0 must be above 0"),
        ({"price_per_million": -1.0}, "prices must be at least 0, got -1.0"),
    ],
)
def test_prices_that_are_none(settings, message):
    with pytest.raises(ConfigError, match=message):
        ServerSettings(**settings)
