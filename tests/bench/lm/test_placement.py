"""Bases that are spread over several devices, or offloaded: they compute, and learn, what they do on one device."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.answering.retune import Retune
from bench.conformance import fixtures
from bench.contract import registry
from bench.contract.method import Method
from bench.errors import BenchError
from bench.harness.integrity import Fingerprint
from bench.harness.loop import Loop, construct, fit
from bench.lm import placement
from bench.lm.base_model import BaseModel
from tests.bench.lm.test_families import FAMILIES, FORMATS, METHODS
from tests.tiny_models import tiny_model
from tests.two_devices import FIRST, SECOND, spread, two_devices

GIB = 2**30
RUN = {name: (name, config) for name, config in {**METHODS, "bm25": {}, "knn_lm": {}}.items()}
RUN["statistics"] = ("dynamic_evaluation", {"statistics": "adam", "decay": 0.1})
ENTRIES = fixtures.entries(3)


def family(name: str) -> Any:
    torch.manual_seed(0)
    return tiny_model(FORMATS.get(name, name), **FAMILIES[name])


def run(method: Method, **settings: Any) -> tuple[list[str], list[float]]:
    """The answers of a short stream, and likelihoods of its documents and answers and norms of gradients."""
    loop = Loop(method, ENTRIES, [entry.document for entry in ENTRIES], **settings)
    loop.run()
    documents, answers, tokens = loop.events
    norms = [norm for event in tokens for norm in event.gradient_norms or ()]
    return [event.prediction for event in answers], [*(event.nll for event in (*documents, *answers)), *norms]


def run_all(lm: BaseModel, names: Any = RUN, **settings: Any) -> dict[str, tuple[list[str], list[float]]]:
    """The results of each method on a base that each leaves as it was."""
    results = {}
    fingerprint = Fingerprint(lm)
    for name in names:
        method_name, config = RUN[name]
        kind = registry.load_method(method_name)
        method = construct(kind, lm, kind.Config(**config), 0)
        results[name] = run(method, **settings)
        method.reset()
        lm.restore()
        assert fingerprint.difference(lm) is None, name
    return results


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neo"])
def test_a_base_on_two_devices_reads_learns_and_answers_as_on_one(name: str) -> None:
    model, tokenizer = family(name), fixtures.base_model().tokenizer
    learning = {"gradient_norms": 1, "retune": Retune(steps=2), "qa_train": fixtures.episodes(ENTRIES)}
    expected = run_all(alone := BaseModel(copy.deepcopy(model), tokenizer), **learning)
    with two_devices():
        lm = BaseModel(spread(model), tokenizer, FIRST)
        assert [str(device) for device in lm.devices] == [FIRST, SECOND]
        assert lm.abilities == alone.abilities
        for method, (answers, likelihoods) in run_all(lm, **learning).items():
            assert answers == expected[method][0], method
            assert likelihoods == pytest.approx(expected[method][1], abs=1e-3), method


@pytest.mark.parametrize("name", ["camels", "cmt", "mac", "mbc", "generative_adapter"])
def test_methods_are_trained_on_a_base_on_two_devices_as_on_one(name: str) -> None:
    kind: Any = registry.load_method(name)

    def trained(lm: BaseModel) -> dict[str, Any]:
        method = construct(kind, lm, kind.Config(training=kind.Config().training.brief()), 0)
        fit(method, fixtures.episodes(ENTRIES))
        assert lm.changed_bytes() == 0
        return {key: torch.tensor(value.tolist()) for key, value in method.learner.state_dict().items()}

    base = fixtures.base_model()
    model, tokenizer = copy.deepcopy(base.model), base.tokenizer
    expected = trained(base)
    with two_devices():
        learner = trained(BaseModel(spread(model), tokenizer, FIRST))
    assert learner.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(learner[key], value, atol=1e-4, rtol=1e-3)


def placed(folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, name: str) -> tuple[BaseModel, BaseModel]:
    """A base whose last layer is on the disk, as others are in main memory beside a GPU, and the same one as it is."""
    model = family(name)
    model.save_pretrained(folder)
    fixtures.base_model().tokenizer.save_pretrained(folder)
    whole = BaseModel.load(str(folder), dtype=dtype)
    parts = spread_map(model)
    options = {"device_map": parts, "offload_folder": str(folder / "offloaded")}
    monkeypatch.setattr(placement, "options", lambda *_: options)
    return BaseModel.load(str(folder), dtype=dtype), whole


def spread_map(model: Any) -> dict[str, str]:
    with two_devices():
        places = spread(copy.deepcopy(model)).hf_device_map
    return {name: "cpu" if place == FIRST else "disk" for name, place in places.items()}


@pytest.mark.parametrize(("name", "dtype"), [("llama", "bfloat16"), ("gpt2", "float32")])
def test_an_offloaded_base_is_read_as_it_is_to_the_bit(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, whole = placed(tmp_path, monkeypatch, dtype, name)
    assert placement.is_offloaded(lm.model) and not placement.is_offloaded(whole.model)
    readers = ["closed_book", "cmt", "mac", "bm25", "knn_lm"]
    assert run_all(lm, readers) == run_all(whole, readers)
    assert placement.is_offloaded(lm.model), "its layers are in memory only while they run"


@pytest.mark.parametrize("is_tried_elsewhere", [False, True])
def test_an_offloaded_base_does_not_learn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_tried_elsewhere: bool
) -> None:
    lm, whole = placed(tmp_path, monkeypatch, "float32", "llama")
    if is_tried_elsewhere:
        lm = BaseModel.load(str(tmp_path), abilities=whole.abilities)
    reasons = {"uniform": "offloaded weights, which cannot change", "lora": "offloaded layers, which pass no gradient"}
    for name, reason in reasons.items():
        kind = registry.load_method(name)
        with pytest.raises(BenchError, match=f"has {reason}, so {name} cannot run on it"):
            construct(kind, lm, kind.Config(), 0)


def test_a_base_is_spread_or_offloaded_only_if_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    def options(*gibibytes: int, free: Sequence[int] = (), **settings: bool) -> dict[str, Any]:
        left = [size * GIB for size in free or gibibytes]
        monkeypatch.setattr(placement, "_gpu_sizes", lambda: [size * GIB + placement.GPU_BYTES for size in gibibytes])
        monkeypatch.setattr(placement, "_free_bytes", lambda count: left[:count])
        return placement.options(GIB, "cuda", **settings)

    monkeypatch.setattr(placement, "available_memory", lambda: 20 * GIB)
    assert options(28, 28) == options(20) == options(9) == {}, "one card is enough to learn, or there is no other"
    assert options(27, 27)["device_map"] == "balanced"
    assert options(80, 80, free=(9, 9))["device_map"] == "balanced", "what others use counts"
    assert options(80, 80, free=(10, 9)) == {}
    rest = {0: 9 * GIB * 4 // 10, "cpu": 18 * GIB}
    assert options(9, offload=True) == {"device_map": "sequential", "max_memory": rest}, (
        "with room for copies and casts"
    )
    assert options(10, offload=True) == {}
    assert options(5, 5, offload=True)["device_map"] == "balanced"
    assert options(5, 20, free=(1, 20))["max_memory"] == {0: GIB * 4 // 10, 1: 8 * GIB}, (
        "no more than can be read there"
    )
    assert options(5, 5)["max_memory"] == {0: 5 * GIB, 1: 5 * GIB}, "or else all there is"
    assert options(28, is_quantized=True) == {"device_map": {"": "cuda"}}
    with pytest.raises(
        BenchError, match=r"take 4\.3 GB, and the GPUs have 3\.2 GB free\. Give it more GPUs or a smaller"
    ):
        options(3)
    with pytest.raises(BenchError, match="A quantized base cannot be offloaded"):
        options(9, offload=True, is_quantized=True)
    monkeypatch.setattr(placement, "available_memory", lambda: 2 * GIB)
    with pytest.raises(BenchError, match=r"the GPUs and main memory have 3\.2 GB free"):
        options(3, offload=True)
    assert placement.options(GIB, "cpu", offload=True) == {}


def test_a_base_that_is_not_where_it_may_be_is_refused() -> None:
    def check(offload: bool, *places: Any) -> None:
        placement.check(SimpleNamespace(hf_device_map=dict(enumerate(places))), "cuda", offload)

    check(False, 0, 1)
    check(True, 0, "cpu")
    for offload, places in ((False, (0, "disk")), (False, (0, "cpu")), (True, ("cpu", "cpu"))):
        with pytest.raises(BenchError, match="do not fit into what is free on the GPUs"):
            check(offload, *places)


def test_a_base_begins_on_the_device_of_its_first_part() -> None:
    def first(*places: Any) -> str:
        return str(placement.first_device(SimpleNamespace(hf_device_map=dict(enumerate(places))), "cuda"))

    assert [first(), first(1, 1), first("cpu", 1, 0), first("cuda:0")] == ["cuda", "cuda:1", "cuda:1", "cuda:0"]
