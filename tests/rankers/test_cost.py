"""Money: told before and while it is spent, and a budget that is kept with nothing lost."""

import json
import logging
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

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


def test_a_crop_that_costs_more_than_the_first_questions_does_not_break_the_budget(serve):
    """The probe has 10 tokens, a crop 1,000: who begins all crops by what the probe cost spends the budget twice."""
    server = serve()
    plain = server.completion
    server.completion = lambda body, choices=1: {
        **plain(body, choices), "usage": {"prompt_tokens": 10 if len(server.bodies) == 1 else 1000}
    }  # fmt: skip
    ranker = make_ranker(server.url, concurrency=16, price_per_million=1.0, budget=0.0052)
    with pytest.raises(RankerError, match=r"the next request might not fit: spent 0.00501 of a budget of 0.0052 on 6"):
        ranker.rank(crops(30), make_shortlist(30, 4, 8), NAMES)
    assert len(server.bodies) == 1 + 5


def test_answers_that_are_paid_for_and_no_use_count_too(serve, monkeypatch):
    monkeypatch.setattr("rar_mmdet.rankers.server._FIRST_PAUSE", 0.01)
    useless = {"choices": [], "usage": {"prompt_tokens": 1000}}
    server = with_usage(serve(script=lambda number, body: ("raw", useless) if number else None), output=0)
    ranker = make_ranker(server.url, price_per_million=1.0, budget=0.0055)
    ranker.max_retries = 50
    with pytest.raises(RankerError, match=r"might not fit: spent 0.005 of a budget of 0.0055 on 5"):
        ranker.rank(crops(8), make_shortlist(8, 4, 8), NAMES)
    assert len(server.bodies) == 5


def test_a_budget_needs_a_server_that_counts(serve):
    ranker = make_ranker(serve().url, price_per_million=1.0, budget=1.0)
    with pytest.raises(RankerError, match=r"does not report the tokens of its answers .*budget=1 cannot be kept"):
        ranker.rank(crops(1), make_shortlist(1, 4, 8), NAMES)


def test_what_questions_will_cost_is_told_before_they_are_asked(serve, caplog):
    server = with_usage(serve(), tokens=500, output=0)
    ranker = make_ranker(server.url, price_per_million=2.0, budget=5.0)
    with caplog.at_level(logging.WARNING):
        told = ranker.estimate(3000)
    assert told == "at most 3,000 questions to the ranker, 1,500,000 input tokens: about 3 at the prices of the config"
    assert "about 500 tokens a question, 1 for 1,000 of them, and the budget lasts for about 5,000" in caplog.text
    assert len(server.bodies) == 1
    with pytest.raises(ConfigError, match="a cost needs server=dict\\(price_per_million"):
        make_ranker(server.url).estimate(1)


def test_what_would_fit_waits_for_what_is_on_the_way():
    """A request that was paid for and has not ended counts twice: it refuses no other one by that."""
    meter, tokens = Meter(1.0, budget=0.0025), json.dumps({"usage": {"prompt_tokens": 1000}})
    assert meter.reserve(1)
    meter.settle(tokens)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(meter.reserve, 1)
        assert not second.done()
        meter.free(1)
        assert second.result(timeout=300)
    meter.settle(tokens)
    assert not meter.reserve(1)  # 0.002 is spent


def test_processes_share_a_budget():
    meter = Meter(1.0, budget=6.0)
    for processes in (3, 2):
        meter.share(processes)
        assert meter.budget == 6.0 / processes


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
