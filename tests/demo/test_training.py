"""The training scripts: data without leaks, and a run that is killed ends as if it had not been."""

import argparse
import json
import sys

import numpy as np
import pytest
import torch
import train_clip
import training
from ranker_data import (
    CHAT_TEMPLATE,
    PROMPTS,
    build_tokenizer,
    chat,
    leak_free_list,
    make_example,
    render_any,
    render_known,
    render_prompt,
    retrieved_list,
)
from ranker_phases import locate, make_phases
from ranker_tower import AttributeHeads, class_log_probs
from safetensors.torch import load_file
from train_ranker import letter_targets
from world import ATTRIBUTES, CLASS_NAMES, rare_classes

KINDS = [kind for kind in PROMPTS if not kind.startswith("_")]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def square(rng):
    return rng.integers(0, 255, (4, 4, 3), dtype=np.uint8), np.array([rng.integers(9)])


def test_pool_resumes_where_it_stopped_and_depends_on_its_entropy(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SHARD", 4)
    pictures, labels = training.rendered_pool(tmp_path / "a", 10, (1, 2), square, workers=1)
    assert pictures.shape == (10, 3, 4, 4)
    assert labels.shape == (10, 1)
    shards = sorted((tmp_path / "a").glob("*/*.npz"))
    shards[1].unlink()  # as if killed there
    first = shards[0].stat().st_mtime_ns
    again, _ = training.rendered_pool(tmp_path / "a", 10, (1, 2), square, workers=1)
    assert torch.equal(again, pictures)
    assert shards[0].stat().st_mtime_ns == first
    other, _ = training.rendered_pool(tmp_path / "a", 10, (1, 3), square, workers=1)
    assert not torch.equal(other, pictures)


def test_a_checkpoint_is_whole_or_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    assert training.load_checkpoint(path) is None
    training.save_checkpoint(path, {"step": 1})

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(training.torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        training.save_checkpoint(path, {"step": 2})
    assert training.load_checkpoint(path) == {"step": 1}


def test_a_killed_clip_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SHARD", 16)

    def run(name):
        flags = {"steps": 4, "batch": 4, "renders": 16, "test-renders": 16, "threads": 1, "save-every": 2}
        argv = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        work = ["--out", str(tmp_path / name / "out"), "--work", str(tmp_path / name / "work")]
        monkeypatch.setattr(sys, "argv", ["train_clip.py", *argv, *work])
        train_clip.main()

    run("unbroken")
    calls, honest = [], train_clip.contrastive_loss

    def killed_in_third_step(*args):
        calls.append(0)
        if len(calls) == 4:  # steps 1 and 2 are saved, step 3 done but lost
            raise KeyboardInterrupt
        return honest(*args)

    monkeypatch.setattr(train_clip, "contrastive_loss", killed_in_third_step)
    with pytest.raises(KeyboardInterrupt):
        run("killed")
    monkeypatch.setattr(train_clip, "contrastive_loss", honest)
    run("killed")
    weights = [load_file(tmp_path / name / "out" / "model.safetensors") for name in ("unbroken", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    curves = [json.loads((tmp_path / n / "out" / "measured.json").read_text())["curve"] for n in ("unbroken", "killed")]
    assert curves[0] == curves[1]


def test_contrastive_loss_shares_the_target_among_equal_captions():
    images = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    classes = torch.tensor([3, 5, 3, 7])
    texts = images[[0, 1, 0, 3]]
    logs = (10 * images @ texts.T).log_softmax(1), (10 * texts @ images.T).log_softmax(1)
    expected = 0.0
    for log in logs:
        for row in range(4):
            same = [column for column in range(4) if classes[column] == classes[row]]
            expected -= sum(log[row, column].item() for column in same) / len(same) / 4 / 2
    loss = train_clip.contrastive_loss(images, texts, torch.tensor(10.0), classes)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("render", [train_clip.render, render_known])
def test_rare_classes_are_never_shown_as_the_truth(render):
    rng = np.random.default_rng(0)
    shown = {int(render(rng)[1][0]) for _ in range(60)}
    assert shown.isdisjoint(rare_classes().tolist())
    assert len(shown) > 20


def test_ranker_crops_are_64_pixels_whatever_the_object():
    rng = np.random.default_rng(1)
    crops = [render_any(rng) for _ in range(40)]
    assert {(crop.shape, crop.dtype) for crop, _ in crops} == {((64, 64, 3), np.dtype("uint8"))}
    sides = [label[1] for _, label in crops]
    assert min(sides) < 25
    assert max(sides) > 100


def central(candidates):
    """The name that shares most attributes with the others: a guess without looking."""
    alike = (ATTRIBUTES[candidates][:, None] == ATTRIBUTES[candidates][None]).sum((1, 2))
    return candidates[int(alike.argmax())]


def test_lists_do_not_give_the_truth_away():
    rng = np.random.default_rng(2)
    truths = rng.integers(600, size=400).tolist()
    guesses = [central(leak_free_list(rng, truth, 5)) == truth for truth in truths]
    assert np.mean(guesses) < 0.30  # chance is .20; perturbing the truth itself would make it about .78
    first = [leak_free_list(rng, truth, 5)[0] == truth for truth in truths]
    assert np.mean(first) == pytest.approx(0.2, abs=0.07)


def test_retrieved_lists_hold_the_truth_once_and_no_repeats():
    rng = np.random.default_rng(3)
    for length in range(2, 9):
        for retrieved in ([1, 2, 3, 4, 5, 6, 7, 8], [9, 1, 2, 3, 4, 5, 6, 7]):
            found = retrieved_list(rng, 9, retrieved, length)
            assert len(found) == len(set(found)) == length
            assert 9 in found


def test_prompts_are_filled_in_and_answers_are_what_they_claim():
    rng, candidates = np.random.default_rng(4), [0, 13, 26, 300, 599]
    names = [CLASS_NAMES[c] for c in candidates]
    for kind in KINDS:
        example = make_example(rng, kind, 26, candidates)
        assert example.answer.startswith(example.emphasis)
        assert not set("{}") & set(example.prompt)
    assert make_example(rng, "letter", 26, candidates).answer == " C"
    assert f"\nC. {names[2]}\n" in render_prompt("letter", names)
    assert str(names) in render_prompt("paper", names)
    assert "top 5 similarity" in render_prompt("paper", names)
    assert "Only choose five categories" in render_prompt("paper_in_context", names)
    answer = make_example(rng, "sort", 26, candidates).answer
    assert answer.startswith(f" ['{names[2]}', ")
    assert sorted(answer.strip(" []").replace("'", "").split(", ")) == sorted(names)


def test_tokenizer_round_trips_any_text_and_lengths_do_not_depend_on_names(tokenizer):
    for text in ("Ünïcode 🙂 names, with 'quotes' and [brackets]", chat("a\nb"), "  spaces  "):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    rng = np.random.default_rng(5)
    for kind in KINDS:
        lengths = set()
        for _ in range(20):
            candidates = rng.choice(600, 5, replace=False).tolist()
            example = make_example(rng, kind, candidates[1], candidates)
            whole = tokenizer(chat(example.prompt) + example.answer)["input_ids"]
            begins = tokenizer(chat(example.prompt))["input_ids"]
            assert whole[: len(begins)] == begins
            lengths.add((len(whole), len(begins)))
        assert len(lengths) == 1


def test_chat_template_renders_what_training_used(tokenizer):
    parts = [{"type": "image"}, {"type": "text", "text": PROMPTS["name"]}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], chat_template=CHAT_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    assert text == chat(PROMPTS["name"])


def test_letters_are_taught_the_posterior_of_their_options(tokenizer):
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    options = [[3, 50, 7, 400], [599, 0, 12, 5]]
    examples = [make_example(rng, "letter", row[0], row) for row in options]
    beliefs = torch.randn(2, 600, generator=generator)
    soft = letter_targets(tokenizer, examples, beliefs)
    letters = [tokenizer(f" {letter}", add_special_tokens=False)["input_ids"][0] for letter in "ABCD"]
    want = torch.stack([beliefs[b, row] for b, row in enumerate(options)]).div(1.5).softmax(1)
    torch.testing.assert_close(soft[:, letters], want)
    torch.testing.assert_close(soft.sum(1), torch.ones(2))


def test_the_towers_belief_in_a_class_is_that_in_its_attributes():
    torch.manual_seed(0)
    heads, tokens = AttributeHeads(8), torch.randn(3, 16, 8)
    beliefs = class_log_probs(heads, tokens).float()
    colour, pattern, shape = (guess.log_softmax(1) for guess in heads(tokens))
    for c in (0, 77, 599):
        i, j, k = ATTRIBUTES[c]
        assert torch.allclose(beliefs[:, c], colour[:, i] + pattern[:, j] + shape[:, k], atol=0.01)
    assert torch.allclose(beliefs.exp().sum(1), torch.ones(3), atol=0.01)


def test_every_step_falls_into_its_phase():
    args = argparse.Namespace(language_steps=3, letter_steps=2, short_answer_steps=2, last_steps=1, language_renders=9)
    phases = make_phases(args)
    found = [locate(phases, step) for step in range(8)]
    assert [(phases.index(phase), inner) for phase, inner in found] == [
        (0, 0),
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
        (3, 0),
    ]
    with pytest.raises(ValueError, match="after the last phase"):
        locate(phases, 8)
    for phase in phases:
        assert sum(phase.questions.values()) == pytest.approx(1)
        assert set(phase.questions) <= set(KINDS)
