import pytest
from transformers import AutoProcessor

from rar_mmdet.errors import RankerLoadError
from rar_mmdet.rankers.dialogue import Dialogue

ONE_TURN = "{% for p in messages[0].content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %} A:"


@pytest.fixture(scope="module")
def processor(tiny_model):
    return AutoProcessor.from_pretrained(tiny_model("llava"))


def test_a_template_without_the_reply_ends_it_with_eos(processor):
    assert Dialogue(processor, ONE_TURN).end_ids == [processor.tokenizer.eos_token_id]


def test_the_end_of_the_turn_is_the_templates(processor):
    told = "{% if messages[1] %}{{ messages[1].content[0].text }}<pad></s>{% endif %}"
    assert Dialogue(processor, ONE_TURN + told).end_ids == [processor.tokenizer.pad_token_id]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param("{{ '<image>' + messages[0].content }}", "can only concatenate str", id="wants-text"),
        pytest.param("{{ messages[0].content.split('x') }}", "no attribute 'split'", id="wants-text-to-split"),
        pytest.param(
            "{% if messages[1] %}{{ raise_exception('one turn only') }}{% endif %}", "one turn", id="one-turn"
        ),
        pytest.param("{% if %}", "Expected an expression", id="syntax"),
    ],
)
def test_other_templates_are_refused_by_name(processor, template, reason):
    with pytest.raises(RankerLoadError, match=rf"my.jinja does not take a user's turn .*{reason}.*one of .*'llava_v1'"):
        Dialogue(processor, template, "my.jinja")
