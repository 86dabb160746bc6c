"""The offline engine: a stand-in with vLLM's signatures that computes with a real tiny model, and the real one."""

import importlib.util
import pickle
import sys
import types
from dataclasses import dataclass, field

import pytest
import torch

from rar_mmdet.errors import MissingAssetError, RankerLoadError
from rar_mmdet.rankers import Generate, Letter, Likelihood, TransformersRanker, YesNo
from rar_mmdet.rankers.vllm_ranker import VLLMRanker
from rar_mmdet.structures import RankStatus
from rar_mmdet.testing import make_shortlist

NAMES = ["cat", "dog", "red car", "bird's nest", "hot dog", "polar bear", "salt shaker", "fish"]


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class SamplingParams:
    """The fields of vLLM's that are used, and what its `SamplingParams.verify` refuses (main branch, November 2026)."""

    temperature: float = 1.0
    max_tokens: int | None = 16
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    detokenize: bool = True

    def verify(self, vocabulary, max_logprobs=20):
        listed, ids = self.logprobs, self.logprob_token_ids
        assert (listed or 0) <= max_logprobs
        if ids is not None:
            assert len(ids) <= 128
            assert all(0 <= token < vocabulary for token in ids)
            assert listed in (None, len(ids)), "when both are set, logprobs must equal len(logprob_token_ids)"


@dataclass
class Completion:
    text: str
    logprobs: list | None


@dataclass
class RequestOutput:
    outputs: list
    prompt_logprobs: list | None = None


@dataclass
class LLM:
    """Computes what vLLM would, one prompt at a time, by plain forward passes of transformers."""

    model: str
    dtype: str = "auto"
    limit_mm_per_prompt: dict | None = None
    mm_processor_kwargs: dict | None = None
    mm_processor_cache_gb: float = 4
    trust_remote_code: bool = False
    seed: int = 0
    calls: list = field(default_factory=list)

    def __post_init__(self):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(self.model)
        self.network = AutoModelForImageTextToText.from_pretrained(self.model, dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        self.calls.append(len(prompts))
        sampling_params.verify(self.network.config.text_config.vocab_size)
        return [self._one(prompt, sampling_params) for prompt in prompts]

    def _one(self, prompt, params):
        picture = prompt["multi_modal_data"]["image"]
        assert picture.dtype == "uint8"
        _, height, width = picture.shape  # as vLLM's `ImageProcessorItems.get_image_size` reads an array
        assert height == width == 28
        pixels = self.processor.image_processor(images=[picture], return_tensors="pt").pixel_values
        image_id = self.network.config.image_token_index
        ids = [i for token in prompt["prompt_token_ids"] for i in ([token] * 4 if token == image_id else [token])]
        logits = self.network(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0].float()
        log_probs = torch.log_softmax(logits, -1)
        text = ""
        if params.max_tokens > 1:
            reply = self.network.generate(
                input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                pixel_values=pixels, max_new_tokens=params.max_tokens, do_sample=False,
            )  # fmt: skip
            text = self.processor.tokenizer.decode(reply[0, len(ids) :], skip_special_tokens=True)
        listed = params.logprob_token_ids or []
        first = {i: Logprob(float(log_probs[-1, i])) for i in [*listed, int(log_probs[-1].argmax())]}
        behind = None
        if params.prompt_logprobs is not None:
            behind = [
                None,
                *({token: Logprob(float(row[token]))} for row, token in zip(log_probs, ids[1:], strict=False)),
            ]
        told = params.logprobs is not None or params.logprob_token_ids
        return RequestOutput([Completion(text, [first] if told else None)], behind)


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = LLM, SamplingParams, "0.33.0"
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


def crops(count):
    return torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def make_ranker(kind, folder, way, **settings):
    return kind(
        model=folder,
        ask=way,
        limits={"max_fallback_rate": 1.0},
        loading={"dtype": "float32"},
        image_size=28,
        **settings,
    )


@pytest.mark.parametrize(
    "way", [Letter(), Letter(num_shifts=1), YesNo(), Likelihood(), Likelihood(score="mean")], ids=str
)
def test_it_says_what_the_local_ranker_says(vllm, tiny_model, way):
    folder, pixels, shortlist = tiny_model("llava"), crops(5), make_shortlist(5, 4, 8)
    theirs = make_ranker(TransformersRanker, folder, way).rank(pixels, shortlist, NAMES)
    ranker = make_ranker(VLLMRanker, folder, way, chunk_size=2)
    ours = ranker.rank(pixels, shortlist, NAMES)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-4, rtol=0)
    torch.testing.assert_close(ours.label_mass, theirs.label_mass, atol=1e-5, rtol=1e-3)
    assert len(ranker.engine.llm.calls) == 3  # 2 + 2 + 1 crops


def test_texts_are_those_of_the_local_ranker(vllm, tiny_model):
    folder, pixels, shortlist = tiny_model("llava"), crops(2), make_shortlist(2, 3, 8)
    way = Generate(max_new_tokens=6)
    theirs = make_ranker(TransformersRanker, folder, way).rank(pixels, shortlist, NAMES)
    ours = make_ranker(VLLMRanker, folder, way).rank(pixels, shortlist, NAMES)
    assert ours.replies == theirs.replies


def test_the_engine_gets_what_it_is_told(vllm, tiny_model):
    ranker = make_ranker(VLLMRanker, tiny_model("llava"), "letter", engine={"seed": 3})
    assert ranker.ask == Letter(num_shifts=1)
    ranker.rank(crops(1), make_shortlist(1, 3, 8), NAMES)
    llm = ranker.engine.llm
    assert (llm.dtype, llm.limit_mm_per_prompt, llm.mm_processor_cache_gb) == ("float32", {"image": 1}, 0)
    assert (llm.seed, llm.trust_remote_code) == (3, False)
    assert ranker.identity()["engine"] == ["vllm", "0.33.0", "[('seed', 3)]"]
    assert "engine" not in pickle.loads(pickle.dumps(ranker)).__dict__


def test_a_killed_run_goes_on(vllm, tiny_model, tmp_path):
    folder, cache, shortlist = tiny_model("llava"), tmp_path / "answers.sqlite", make_shortlist(5, 3, 8)
    first = make_ranker(VLLMRanker, folder, "letter", chunk_size=2, cache=cache)
    plain, calls = first.engine.llm.generate, []

    def dies(prompts, *args, **kwargs):
        if calls:
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return plain(prompts, *args, **kwargs)

    first.engine.llm.generate = dies
    with pytest.raises(KeyboardInterrupt):
        first.rank(crops(5), shortlist, NAMES)
    again = make_ranker(VLLMRanker, folder, "letter", chunk_size=2, cache=cache)
    assert (again.rank(crops(5), shortlist, NAMES).status == RankStatus.OK).all()
    assert (again.report()["cached"], again.report()["asked"]) == (2, 3)


def test_without_vllm_it_says_what_to_type(monkeypatch, tiny_model):
    monkeypatch.setitem(sys.modules, "vllm", None)
    ranker = make_ranker(VLLMRanker, tiny_model("llava"), "letter")
    assert "pip install 'rar-mmdet[vllm]' in an environment of its own" in ranker.missing_assets()[0]
    with pytest.raises(MissingAssetError, match="VLLMRanker needs vllm"):
        _ = ranker.engine


def test_an_old_vllm_is_told(vllm, tiny_model):
    vllm.SamplingParams = lambda temperature=1.0, max_tokens=16, logprobs=None: None
    with pytest.raises(RankerLoadError, match="has no SamplingParams.logprob_token_ids"):
        _ = make_ranker(VLLMRanker, tiny_model("llava"), "letter").engine


@pytest.mark.gpu
@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="the optional extra rar-mmdet[vllm] is not installed"
)
def test_the_real_engine(tiny_model):
    folder, pixels, shortlist = tiny_model("llava"), crops(4), make_shortlist(4, 4, 8)
    theirs = make_ranker(TransformersRanker, folder, Letter()).rank(pixels, shortlist, NAMES)
    ours = make_ranker(VLLMRanker, folder, Letter(), engine={"enforce_eager": True}).rank(pixels, shortlist, NAMES)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs, atol=2e-2, rtol=0)
