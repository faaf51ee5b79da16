"""Passes through a part of a base's depth, against whole passes."""

from __future__ import annotations

from pathlib import Path

import torch

from bench.lm.base_model import BaseModel
from methods.parts.depth import read_first_blocks, reading_once
from methods.parts.parameters import blocks


def test_the_first_blocks_give_the_hidden_states_of_a_whole_pass(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    ids = lm.encode("The mill by the river.")[None]
    called: list[str] = []
    blocks(lm.model)[1].register_forward_hook(lambda *_: called.append("second"))
    next(blocks(lm.model)[1].children()).register_forward_hook(lambda *_: called.append("its parts"))
    states = read_first_blocks(lm, 1, ids)
    assert called == ["second"], "it passes on what it gets"
    expected = lm.model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(states, expected[1])
    assert states.requires_grad and "its parts" in called


def test_what_is_read_once_is_read_again_afterwards(checkpoint: Path) -> None:
    lm = BaseModel.load(str(checkpoint))
    texts = [lm.encode(text)[None] for text in ("The mill.", "The river by it.")]
    below = list(blocks(lm.model))[:1]
    with torch.no_grad():
        plain = [lm.model(input_ids=ids).logits for ids in texts]
        with reading_once(lm, below):
            for _ in range(2):
                for ids, logits in zip(texts, plain, strict=True):
                    assert torch.equal(lm.model(input_ids=ids, use_cache=False).logits, logits)
        next(below[0].parameters()).add_(1)
        assert not torch.allclose(lm.model(input_ids=texts[0]).logits, plain[0])
