"""The start of a prefix head from the base."""

from __future__ import annotations

import torch

from bench.conformance.fixtures import base_model
from methods.parts.cross_attention import PrefixHead
from methods.parts.text_encoder import fit_prefix_head


def test_the_fit_of_a_prefix_head_does_not_depend_on_memory_layout() -> None:
    lm, fits, kept = base_model(), [], []
    for shift in range(8):
        kept.append(torch.empty(4096 * 3 + 16 * shift + 1))  # so that the solver gets other memory each time
        for parameter in lm.model.parameters():
            copy = torch.empty(parameter.numel() + shift)[shift:].view(parameter.shape)
            parameter.data = copy.copy_(parameter.data)
        torch.manual_seed(0)
        head = PrefixHead(lm.key_value_shape, 4, 12, hidden=8, positions=2)
        project = torch.nn.Linear(lm.model.config.hidden_size, 12, bias=False)
        fit_prefix_head(head, lm, project, torch.randperm(len(lm.tokenizer)), affine=False)
        assert head.nets.skip is not None and head.nets.skip.dtype == torch.float32
        fits.append(head.nets.skip)
    assert all(torch.equal(fit, fits[0]) for fit in fits)
