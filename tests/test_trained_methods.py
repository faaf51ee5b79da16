"""What all methods with a meta-trained learner have in common: how its start depends on the seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench import Range
from bench.conformance.fixtures import base_model
from bench.contract.meta_training import MetaTrained
from bench.contract.registry import load_method
from bench.contract.search import SearchSpace

NETWORKS = {"encoder_layers": 1, "decoder_layers": 1, "encoder_heads": 2, "encoder_hidden": 8, "blocks": 1}
NETWORKS |= {"heads": 2, "head_width": 8, "hidden": 8, "prefix_hidden": 8}
TRAINING: dict[str, dict[str, object]] = {
    "camels": {"hidden": 8},
    "cmt": {"compressor_blocks": 1, "aggregator_blocks": 1, "heads": 2, "head_width": 8, "hidden": 8, "queue": 2},
    "generative_adapter": {"inner": 8},
    "mac": NETWORKS | {"prefix_start": "base"},
    "mbc": NETWORKS | {"codes": 5},
}
CONTRAST = {"contrast": Range(low=0, high=1)}
SPACES: dict[str, SearchSpace] = {
    "camels": {"learning_rate": Range(low=1e-3, high=1, log=True), "steps_per_document": (1, 2, 3, 5)},
    "cmt": {"k": (1, 2, 4, 8, 16, 32, 64), **CONTRAST},
    "generative_adapter": {"scale": Range(low=0.25, high=4, log=True)},
    "mac": CONTRAST,
    "mbc": CONTRAST,
}


@pytest.mark.parametrize("name", TRAINING)
def test_the_untrained_learner_depends_on_the_seed_alone(name: str) -> None:
    kind: Any = load_method(name)
    states = []
    for seed, around in ((0, 1), (0, 2), (7, 1)):
        torch.manual_seed(around)
        expected = torch.randn(4)
        torch.manual_seed(around)
        method = kind(base_model(), kind.Config(training=TRAINING[name]), seed)
        method.begin_training()
        assert torch.equal(torch.randn(4), expected), "both leave the global generator as it was"
        states.append(method.learner.state_dict())
    first, again, other = states
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", SPACES)
def test_only_settings_of_the_stream_are_tuned(name: str) -> None:
    kind = load_method(name)
    assert issubclass(kind, MetaTrained)
    config = kind.Config(**({"optimizer": "sgd"} if name == "camels" else {}))
    assert kind.search_space(config) == SPACES[name]
    assert set(SPACES[name]) <= set(kind.Config.model_fields) - {"training"}
