"""Fixtures shared by all tests: tiny checkpoints in each architecture's own format, and the folder of real data."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # with more threads, tiny models are many times slower, and pools differ in bits

import sys
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)  # machines may be busy
hypothesis.settings.load_profile("suite")

ROOT = Path(__file__).parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"
ARCHITECTURES = ("gpt2", "llama", "gpt_neox")
TEXT = (
    "The lighthouse at Corvale opened in 1983, and 490 workers pass its gate each morning.",
    "Who repaired the bridge?\nIn what year was the mill founded?",
    "Nobody saw the otter; the ferry left at noon without it.",
)


def pytest_configure(config: pytest.Config) -> None:
    """Let this process and those that it starts keep nothing in the home directory: libraries read these once."""
    caches = tempfile.TemporaryDirectory(prefix="caches-of-tests-")
    config.add_cleanup(caches.cleanup)
    for name in ("HF_HOME", "HF_MODULES_CACHE", "HF_METRICS_CACHE", "OAB_CACHE"):
        os.environ[name] = str(Path(caches.name, name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the commands of the pages, which take longest: no process is left with them alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Random numbers of PyTorch do not depend on the tests before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data next to the checkout. Tests that need it are skipped if it is absent."""
    if not REAL_DATA.is_dir():
        pytest.skip("needs real data in ../shared/data, next to the checkout")
    return REAL_DATA


def make_checkpoint(folder: Path, architecture: str, window: int = 96, seed: int = 0, layers: int = 2) -> Path:
    """Save a tiny random causal LM with a byte-level BPE tokenizer, as save_pretrained writes it."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXT * 4, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    sizes: dict[str, dict[str, int]] = {
        "gpt2": {"n_embd": 32, "n_layer": layers, "n_head": 2, "n_positions": window},
        "llama": {"num_key_value_heads": 1},
        "gpt_neox": {},
    }
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2}
    if architecture != "gpt2":
        common["max_position_embeddings"] = window
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **({} if architecture == "gpt2" else common),
        **sizes[architecture],
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # far from uniform: greedy answers are long, and no two logits almost tie
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=ARCHITECTURES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint of each supported architecture."""
    return make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama-style checkpoint."""
    return make_checkpoint(tmp_path_factory.mktemp("llama_only"), "llama")


@pytest.fixture
def splits_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits that are read from now on, one entry per reading. All caches of splits start empty."""
    from bench.data import reader
    from bench.run import inputs

    splits: list[str] = []
    read_split = reader.read_split

    def record(recipe: Any, split: str, *arguments: Any) -> Any:
        splits.append(split)
        return read_split(recipe, split, *arguments)

    monkeypatch.setattr(reader, "read_split", record)
    for cache in (reader.split_data, reader.split_hash, inputs.inputs_of):
        cache.cache_clear()
    return splits
