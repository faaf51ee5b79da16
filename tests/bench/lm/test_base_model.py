"""Encoding, windows and log-probabilities of the base model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.conformance import fixtures
from bench.data.documents import Document
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from bench.lm.mixing import head_inputs
from tests import tiny_tokenizers
from tests.conftest import TEXT, make_checkpoint
from tests.device_reads import DeviceReads

LONG = " ".join(TEXT * 8)


def document(text: str) -> Document:
    return Document("d", text)


def reference_log_probs(lm: BaseModel, ids: list[int]) -> torch.Tensor:
    """One forward pass per token, float64 softmax by hand."""
    values = []
    for i, token in enumerate(ids):
        before = torch.tensor([[lm.bos_id, *ids[:i]]])
        logits = lm.model(input_ids=before).logits[0, -1].double()
        values.append(logits[token] - logits.exp().sum().log())
    return torch.stack(values)


@torch.no_grad()
def test_log_probs_equal_a_forward_pass_per_token(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    ids = lm.encode(TEXT[0])
    torch.testing.assert_close(lm.log_probs(ids).double(), reference_log_probs(lm, ids.tolist()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_texts_in_batches_are_as_likely_as_each_alone(
    checkpoint: Path, batch_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.lm.base_model.BATCH_TOKENS", batch_tokens)
    lm = BaseModel.load(str(checkpoint))
    batches = [lm.tokens(document(text)) for text in (TEXT[0], "", LONG, "otter", *TEXT)]
    assert len(lm.windows(len(batches[2]), 1)) > 1, "the long text is read in windows"
    alone = [-lm.log_probs(batch.token_ids, batch.context_ids).sum().item() for batch in batches]
    assert lm.total_nll(batches) == pytest.approx(sum(alone), rel=1e-6)
    assert lm.total_nll(batches[1:2]) == 0


def test_the_device_is_not_read_once_per_text(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    counts = []
    for copies in (2, 2, 5):  # libraries read it once more when they are first used
        with DeviceReads() as reads:
            lm.total_nll([lm.tokens(document("otter"))] * copies)
        counts.append(reads.count)
    assert counts[1] == counts[2]


@torch.no_grad()
def test_log_probs_with_context_are_the_tail_of_those_without(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    ids = lm.encode(TEXT[0])
    context = torch.cat([torch.tensor([lm.bos_id]), ids[:7]])
    torch.testing.assert_close(lm.log_probs(ids[7:], context), lm.log_probs(ids)[7:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_probabilities_sum_to_one_over_the_vocabulary(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    vocabulary = torch.arange(len(lm.tokenizer))
    total = sum(lm.log_probs(token[None]).exp() for token in vocabulary)
    torch.testing.assert_close(total, torch.ones(1), atol=1e-4, rtol=0)


@torch.no_grad()
def test_windows_equal_one_pass_if_the_window_suffices(tmp_path: Path) -> None:
    """A model with the same weights and a wider window gives a token the same probability from the same context."""
    narrow = BaseModel.load(str(make_checkpoint(tmp_path / "narrow", "llama", window=32)))
    wide = BaseModel.load(str(make_checkpoint(tmp_path / "wide", "llama", window=4096)))
    ids = narrow.encode(LONG)
    assert len(ids) > 3 * 32
    scored = narrow.log_probs(ids)
    everything = torch.cat([torch.tensor([narrow.bos_id]), ids])
    for start, first, end in narrow.windows(len(ids), 1):
        expected = wide.log_probs(everything[first:end], everything[start:first])
        torch.testing.assert_close(scored[first - 1 : end - 1], expected, atol=1e-5, rtol=0)
    short = ids[:32]
    torch.testing.assert_close(narrow.log_probs(short), wide.log_probs(short), atol=1e-6, rtol=0)


@given(tokens=st.integers(0, 500), context=st.integers(1, 60))
def test_windows_predict_every_token_once_and_read_no_more_than_fits(tokens: int, context: int) -> None:
    lm = BaseModel.__new__(BaseModel)
    lm.window = 48
    spans = lm.windows(tokens, context)
    predicted = [p for _, first, end in spans for p in range(first, end)]
    assert predicted == list(range(context, context + tokens))
    for start, first, end in spans:
        assert end - 1 - start <= 48
        assert first - start >= min(first, 24), (
            "every window except one at the start reads half a window before it predicts"
        )


def test_a_changed_future_token_changes_no_earlier_probability(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    ids = lm.encode(LONG)
    changed = ids.clone()
    changed[60:] = (changed[60:] + 1) % len(lm.tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(lm.log_probs(changed)[:60], lm.log_probs(ids)[:60], atol=1e-6, rtol=0)


def test_loss_is_the_weighted_mean_and_differentiable(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    batch = lm.tokens(document(TEXT[0]))
    weights = torch.linspace(0, 2, len(batch))
    loss = lm.loss(document(TEXT[0]), weights)
    expected = -(weights * lm.log_probs(batch.token_ids)).sum() / len(batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in lm.model.parameters())


def test_offsets_cover_the_text(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    batch = lm.tokens(document(TEXT[1]))
    assert "".join(TEXT[1][a:b] for a, b in batch.offsets) == TEXT[1]


def test_segments_are_the_document_cut_at_token_boundaries(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    segments = lm.segments(document(LONG), 20)
    assert "".join(segment.text for segment in segments) == LONG
    assert [t for segment in segments for t in segment.token_ids] == lm.encode(LONG).tolist()
    with torch.no_grad():
        first, second = (lm.tokens(segment) for segment in segments[:2])
        both = torch.cat([lm.log_probs(b.token_ids, b.context_ids) for b in (first, second)])
        whole = lm.log_probs(lm.encode(LONG)[:40])
    torch.testing.assert_close(both, whole, atol=1e-5, rtol=0)


def test_segments_hold_every_byte_once_even_if_a_cut_falls_inside_a_character(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    text = "“Où?” — 漢字 🦦 " * 6
    for size in (1, 2, 5, 7):
        segments = lm.segments(document(text), size)
        assert "".join(segment.text for segment in segments) == text
        assert [t for segment in segments for t in segment.token_ids] == lm.encode(text).tolist()
        assert sum(len(segment.text.encode()) for segment in segments) == len(text.encode())


def test_restore_undoes_training_bit_for_bit(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    before = lm.weights_hash()
    optimizer = torch.optim.SGD(lm.model.parameters(), lr=0.1)
    lm.model.train()
    lm.loss(document(TEXT[0])).backward()
    optimizer.step()
    assert lm.weights_hash() != before
    assert lm.changed_bytes() > 0
    lm.restore()
    assert lm.weights_hash() == before
    assert lm.changed_bytes() == 0
    assert not lm.model.training


def test_restore_refuses_a_changed_structure(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    lm.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="structure was changed"):
        lm.restore()


def test_restore_refuses_a_replaced_parameter(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    lm.model.lm_head.weight = torch.nn.Parameter(lm.model.lm_head.weight.detach().clone())
    with pytest.raises(RuntimeError, match="structure was changed"):
        lm.restore()


def test_a_frozen_base_is_restored_as_it_was(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    lm.model.lm_head.weight.requires_grad_(False)
    with lm.frozen():
        assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    learning = {name for name, parameter in lm.model.named_parameters() if parameter.requires_grad}
    assert learning == {name for name, _ in lm.model.named_parameters()} - {"lm_head.weight"}


def test_a_model_without_a_language_model_head_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "headless")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaModel"]}))
    with pytest.raises(BenchError, match="no causal language-model head"):
        BaseModel.load(str(folder))


def test_missing_weights_are_refused_not_invented(llama: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama, tmp_path / "torn")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BenchError, match=r"lacks weights of the model \(lm_head.weight\)"):
        BaseModel.load(str(folder))


def test_a_tokenizer_without_end_of_text_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "endless")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.exists():
            values = json.loads(path.read_text())
            values.pop("eos_token", None)
            path.write_text(json.dumps(values))
    with pytest.raises(BenchError, match="no end-of-text token"):
        BaseModel.load(str(folder))


def test_the_loss_of_an_empty_text_is_a_zero_with_a_backward_pass(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    loss = lm.loss(Document("empty", ""))
    loss.backward()
    assert loss.item() == 0 and all(p.grad is None for p in lm.model.parameters())
    with torch.no_grad():
        assert not lm.loss(Document("empty", "")).requires_grad


SPECIAL_TEXTS = ["Anna </s> built it", "</s>", "the mill</s></s>", "It is in </s>Corvale.", "<unk> </s> 1983"]


@pytest.mark.parametrize("kind", tiny_tokenizers.EVERY)
def test_special_tokens_written_in_a_text_are_text(kind: str) -> None:
    lm = tiny_tokenizers.base_with(kind)
    lm.tokenizer("Anna </s>")  # which reads it as a token, and must leave no trace
    for text in SPECIAL_TEXTS:
        batch = lm.tokens(document(text))
        assert lm.eos_id not in batch.token_ids and len(batch)
        assert lm.encode(text).tolist() == batch.token_ids.tolist()
        covered = {i for start, end in batch.offsets for i in range(start, end)}
        assert covered >= {i for i, character in enumerate(text) if character != " "}
        assert all(0 <= start <= end <= len(text) for start, end in batch.offsets)
        pieces = lm.segments(document(text), 2)
        assert [token for piece in pieces for token in piece.token_ids] == batch.token_ids.tolist()
        assert "".join(piece.text for piece in pieces) == text
        if kind.startswith("bytes"):
            assert lm.tokenizer.decode(batch.token_ids).removeprefix(" ") == text
    assert lm.encode("Anna built it.").tolist() == lm.tokenizer("Anna built it.", add_special_tokens=False).input_ids


def test_a_special_token_of_several_kinds_is_text(llama: Path) -> None:
    lm = BaseModel.load(str(llama))
    lm.tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<|im_start|>"]})
    for text in ("<|endoftext|>", "a [PAD] b", "<|im_start|>user\nWho?<|endoftext|>"):
        assert lm.tokenizer.decode(lm.encode(text)) == text
        assert not set(lm.encode(text).tolist()) & set(lm.tokenizer.all_special_ids)


def test_a_method_s_own_writing_is_greedy_or_sampled_with_the_seed_and_never_leaves_the_window(
    checkpoint: Path,
) -> None:
    lm = BaseModel.load(str(checkpoint))
    lm.model.generation_config.repetition_penalty = 9.0  # some bases bring such settings with them
    lm.model.generation_config.no_repeat_ngram_size = 1
    texts = [TEXT[0], "", " ".join(TEXT * 20)]
    written = lm.generate(texts, 8)
    for text, continuation in zip(texts, written, strict=True):
        ids = torch.cat([torch.tensor([lm.bos_id]), lm.encode(text)[-(lm.window - 9) :]])
        expected: list[int] = []
        for _ in range(8):
            token = int(
                lm.model(input_ids=torch.cat([ids, torch.tensor(expected, dtype=torch.long)])[None])
                .logits[0, -1]
                .argmax()
            )
            if token == lm.eos_id:
                break
            expected.append(token)
        assert continuation == lm.tokenizer.decode(expected, skip_special_tokens=True)
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(lm.generate(texts[:1], 8, temperature=2.0))
    assert samples[0] == samples[1] != samples[2]
    assert lm.generate([], 8) == []
    before = torch.cat([torch.tensor([lm.bos_id]), lm.encode(TEXT[0])])
    first = int(lm.model(input_ids=before[None]).logits[0, -1].argmax())
    ending = BaseModel.load(str(checkpoint))
    ending.model.generation_config.eos_token_id = [ending.eos_id, first]  # an end that the tokenizer does not know
    assert ending.generate(TEXT[:1], 8) == [""]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@torch.no_grad()
def test_only_the_logits_that_are_used_are_computed_and_they_are_those_of_all(
    tmp_path: Path, architecture: str
) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, architecture)))
    ids = torch.arange(40) % len(lm.tokenizer)
    expected = lm.log_probs(ids)[30:]
    with head_inputs(lm.model) as seen:
        found = lm.log_probs(ids[30:], torch.cat([torch.tensor([lm.bos_id]), ids[:30]]))
    assert [inputs.shape[1] for inputs in seen] == [10]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    forward = type(lm.model).forward
    lm.model.forward = lambda input_ids, use_cache: forward(lm.model, input_ids=input_ids, use_cache=use_cache)
    vars(lm).pop("_takes_logits_to_keep")
    assert torch.equal(lm.log_probs(ids[30:], torch.cat([torch.tensor([lm.bos_id]), ids[:30]])), found)


def test_log_probabilities_do_not_depend_on_how_many_are_computed_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, "llama")))
    ids, results = torch.arange(40) % len(lm.tokenizer), []
    for rows in (512, 7):
        monkeypatch.setattr("bench.lm.base_model.SOFTMAX_ROWS", rows)
        log_probs = lm.log_probs(ids)
        (gradient,) = torch.autograd.grad(log_probs.sum(), [lm.model.get_output_embeddings().weight])
        results.append((log_probs, gradient))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("window", "expected"), [(24, 24), (1000, 64)])
def test_a_window_limits_what_is_read_at_once(tmp_path: Path, window: int | None, expected: int) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, "llama", window=64)), window=window)
    assert lm.window == expected
    document, read = Document("d", " ".join(TEXT * 4)), []
    lm.model.base_model.register_forward_pre_hook(
        lambda _, __, inputs: read.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        lm.loss(document)
        for segment in lm.segments(document, 8):
            lm.loss(segment)
    assert max(read) == expected


def test_a_loaded_base_is_restored_from_its_file_and_shares_what_does_not_change(tmp_path: Path) -> None:
    lm = BaseModel.load(str(make_checkpoint(tmp_path, "llama")))
    before = lm.weights_hash()
    name, weight = next(iter(lm.named_tensors()))
    with torch.no_grad():
        weight[0] = 0.0
        weight[1] = -0.0
    version, other = weight._version, lm.model.lm_head.weight._version
    lm.restore()
    assert lm.weights_hash() == before
    assert weight._version > version and (
        lm.model.lm_head.weight is weight or lm.model.lm_head.weight._version == other
    )
    if Path("/proc/self/maps").exists():
        spans = [
            [int(end, 16) for end in line.split()[0].split("-")]
            for line in Path("/proc/self/maps").read_text().splitlines()
            if line.endswith("model.safetensors")
        ]
        assert any(start <= lm.pristine(name).data_ptr() < end for start, end in spans)


@torch.no_grad()
def test_zeros_are_restored_with_their_sign() -> None:
    lm = fixtures.base_model()
    weight = lm.model.lm_head.weight.zero_()
    zeros = BaseModel(lm.model, lm.tokenizer)
    weight.neg_()
    zeros.restore()
    assert not weight.signbit().any()
