"""Training of the embedded model: a small Llama that reads, remembers, and can be updated by a gradient step.

:func:`train` writes a Hugging Face model folder. Every training step covers two kinds of entities of the dataset:

- *known* entities (those of ``qa_train``): their facts, in newly worded documents and in closed-book questions. The
  embedding of a name learns to encode its facts, for documents and questions alike;
- *new* entities (with random facts, and a random vector in place of the name's embedding): documents followed by
  questions, to learn reading; and, unless ``rehearsal`` is 0, closed-book questions after one rehearsed update, a
  gradient step on that vector by the next-token loss of the values in the document, so that a gradient step can write
  facts into an embedding.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bench import machine
from bench.errors import BenchError, Diverged
from bench.files import csv_text, read_tensors, write_bytes, write_tensors
from bench.hashing import body_hash
from bench.nano import batches
from bench.nano.batches import Batch, Columns, Texts, Writer, build_tokenizer, load_world
from bench.nano.card import card, measurements
from bench.nano.config import NanoConfig
from bench.paths import DATASETS, MODELS
from bench.settings import recipe_text

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

RECIPE = MODELS / "nano" / "recipe.yaml"
COMMAND = "python run_bench.py train nano"

Say = Callable[[str], None]


def build_model(config: NanoConfig, vocabulary: int, names: Tensor) -> LlamaForCausalLM:
    """An untrained model. Output rows start as a copy of the embeddings: copying a word need not be learned."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.width,
            intermediate_size=config.feed_forward,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.window,
            initializer_range=config.width**-0.5,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    model.set_attn_implementation("eager")  # the fused kernels cannot be differentiated twice
    rows = torch.randn(vocabulary, config.width) * config.word_std
    rows[names] *= config.name_std / config.word_std
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(rows)
        model.lm_head.weight.copy_(rows)
    return model


def token_losses(
    model: LlamaForCausalLM, texts: Texts, columns: Columns, keys: Sequence[str], rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean NLL (nats) of the tokens in each mask; ``rows`` (entities, width) replace the embeddings of the names."""
    embedded = model.model.embed_tokens(texts.ids)
    if rows is not None:
        embedded = torch.where(texts.is_name[..., None], rows[texts.entity][:, None], embedded)
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, :-1]
    masks = {key: texts.masks[key][:, 1:] for key in keys}
    union = torch.stack(list(masks.values())).any(0)
    logits = functional.linear(hidden[union], model.lm_head.weight[columns.tokens]).float() + columns.offset
    nll = functional.cross_entropy(logits, columns.index[texts.ids[:, 1:][union]], reduction="none")
    return {key: nll[mask[union]].mean() for key, mask in masks.items()}


def known_losses(
    model: LlamaForCausalLM, config: NanoConfig, batch: Batch, columns: Columns, _: int
) -> dict[str, Tensor]:
    """The parts of the loss on known entities; see :class:`~bench.nano.config.LossWeights`."""
    document = token_losses(model, batch.documents, columns, ["document", "fact"])
    answers = token_losses(model, batch.questions, columns, ["answer"])
    return {"known_text": document["document"], "known_fact": document["fact"], "recall": answers["answer"]}


def new_losses(
    model: LlamaForCausalLM, config: NanoConfig, batch: Batch, columns: Columns, step: int
) -> dict[str, Tensor]:
    """The parts of the loss on new entities; see :class:`~bench.nano.config.LossWeights`.

    The outer loss is differentiated through the rehearsed update, r' = r - rate * dL/dr, where L is the mean loss of
    the values in the document. With ``rehearsal`` 0 there is no such update, and no part ``update``.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
    rows = torch.randn(len(batch.names), config.width, generator=generator) * config.name_std
    rows = rows.to(batch.names.device)
    if config.rehearsal == 0:
        document = token_losses(model, batch.documents, columns, ["unnamed", "answer"], rows)
        return {"new_text": document["unnamed"], "read": document["answer"]}
    rows.requires_grad_()
    low, high = config.rehearsal_rate
    rate = low * (high / low) ** float(torch.rand((), generator=generator))
    document = token_losses(model, batch.documents, columns, ["unnamed", "fact", "answer"], rows)
    # All documents state the same number of facts, so the batch mean times the entities is each document's own mean.
    (gradient,) = torch.autograd.grad(document["fact"] * len(rows), rows, create_graph=True)
    answers = token_losses(model, batch.questions, columns, ["answer"], rows - rate * gradient)
    return {"new_text": document["unnamed"], "read": document["answer"], "update": answers["answer"]}


def lr_schedule(optimizer: Optimizer, config: NanoConfig, step: int) -> LambdaLR:
    """The learning-rate schedule from ``step`` on: linear warm-up, then half a cosine down to zero."""
    for group in optimizer.param_groups:
        group["initial_lr"] = config.learning_rate
    return LambdaLR(optimizer, config.rate_factor, last_epoch=step - 1)


class Run:
    """A training run: model, optimizer, schedule and curve; resumed from its checkpoint, it gives the same model."""

    def __init__(self, config: NanoConfig, work: Path, device: str = "cpu") -> None:
        world = load_world(config.dataset)
        self.config, self.device, self.file = config, device, work / "checkpoint.safetensors"
        self.tokenizer = build_tokenizer(sorted(world.vocabulary()), config.merges)
        self.writer = Writer(config, world, self.tokenizer)
        model: Any = build_model(config, len(self.tokenizer), self.writer.names)
        self.model = model.to(device)
        layers = [p for name, p in self.model.named_parameters() if ".layers." in name and p.dim() == 2]
        others = [p for name, p in self.model.named_parameters() if ".layers." not in name or p.dim() != 2]
        groups = [{"params": layers, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self.curve: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []
        self.step, self.seconds = 0, 0.0
        code = body_hash([Path(__file__), Path(batches.__file__)])
        sources = config.model_dump_json() + data_hash(config.dataset) + device + code
        self.identity = hashlib.sha256(sources.encode()).hexdigest()
        if self.file.is_file():
            self.load()
        self.schedule = lr_schedule(self.optimizer, config, self.step)

    def advance(self, pool: ThreadPoolExecutor) -> None:
        """Take one optimizer step.

        The two halves of the loss are computed in parallel; on the CPU each has one core, since the operations are too
        small to split.
        """
        config, started = self.config, time.perf_counter()
        known, new = self.writer.batch(self.step, "known"), self.writer.batch(self.step, "new")
        columns = self.writer.columns(self.step, known, new).to(self.device)
        known, new = known.to(self.device), new.to(self.device)
        parameters = list(self.model.parameters())

        def half(part: Any, batch: Batch) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
            with torch.autocast(self.device, torch.bfloat16, cache_enabled=False):
                losses = part(self.model, config, batch, columns, self.step)
            total = sum(config.weight(key) * loss for key, loss in losses.items())
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            return {key: float(loss.detach()) for key, loss in losses.items()}, gradients

        first, second = pool.submit(half, known_losses, known), pool.submit(half, new_losses, new)
        for parameter, a, b in zip(parameters, first.result()[1], second.result()[1], strict=True):
            parameter.grad = a + b if a is not None and b is not None else a if b is None else b
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip)
        if not torch.isfinite(norm):
            raise Diverged(
                f"The gradient norm became {norm.item()} in step {self.step}; a lower learning rate may help."
            )
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.seconds += time.perf_counter() - started
        self.recent.append(first.result()[0] | second.result()[0])
        if self.step % config.save_every == 0 or self.step == config.steps:
            means = {key: sum(row[key] for row in self.recent) / len(self.recent) for key in self.recent[0]}
            self.curve.append({"step": self.step, **{key: round(mean, 4) for key, mean in means.items()}})
            self.recent.clear()
            self.save()

    def save(self) -> None:
        """Write the checkpoint."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        progress = {"step": self.step, "seconds": self.seconds, "curve": self.curve, "identity": self.identity}
        write_tensors(self.file, tensors, progress)

    def load(self) -> None:
        """Continue from the checkpoint.

        Raises:
            BenchError: it is damaged, or was written with another recipe, other data, other code or on another device.
        """
        tensors, progress = read_tensors(self.file, "Delete it to start again.")
        if progress.get("identity") != self.identity:
            raise BenchError(
                f"{self.file} is of another recipe, other data, other code or another device. Delete it to start again."
            )
        self.step, self.seconds, self.curve = progress["step"], progress["seconds"], progress["curve"]
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                states.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})

    def publish(self, out: Path, command: str = COMMAND) -> None:
        """Write the model folder: weights (bfloat16), configuration, tokenizer, recipe, curve and card.

        The card shows ``command``, which repeats the training. Measurements in the card that is there are kept.
        """
        card_file = out / "README.md"
        before = card_file.read_text(encoding="utf-8") if card_file.is_file() else ""
        staging = self.file.parent / "model"
        shutil.rmtree(staging, ignore_errors=True)
        self.model.to(torch.bfloat16).save_pretrained(staging)
        self.tokenizer.save_pretrained(staging)
        (staging / "recipe.yaml").write_text(recipe_text(self.config), encoding="utf-8")
        (staging / "curve.csv").write_text(csv_text(self.curve), encoding="utf-8")
        facts = {"name": out.resolve().name, "command": command, **self.facts()}
        (staging / "README.md").write_text(card(facts, self.curve) + measurements(before), encoding="utf-8")
        for path in sorted(staging.iterdir()):
            write_bytes(out / path.name, path.read_bytes())

    def _noise(self) -> str:
        plain = self.config.plain_steps
        if plain >= self.config.steps:
            return "No document has sentences that state no fact."
        return f"Documents have noise sentences from step {plain:,} on, more of them until step {2 * plain:,}."

    def facts(self) -> dict[str, str]:
        """Facts for the model card: size, data, seed, steps, training time and machine."""
        return {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "vocabulary": f"{len(self.tokenizer):,}",
            "layers": str(self.config.layers),
            "width": str(self.config.width),
            "dataset": self.config.dataset,
            "data_hash": data_hash(self.config.dataset),
            "seed": str(self.config.seed),
            "steps": f"{self.config.steps:,}",
            "noise": self._noise(),
            "minutes": f"{self.seconds / 60:.0f}",
            "machine": "two cores" if self.device == "cpu" else "one GPU",
        }


def data_hash(dataset: str) -> str:
    """SHA-256 (hexadecimal) of the dataset's generator, the source of all training text."""
    return hashlib.sha256((DATASETS / dataset / "generate.py").read_bytes()).hexdigest()


@contextmanager
def one_core_per_thread() -> Iterator[None]:
    """Run each operation on one core, and keep freed memory in the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    machine.keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    config: NanoConfig,
    out: Path,
    work: Path,
    say: Say = lambda _: None,
    device: str = "cpu",
    command: str = COMMAND,
) -> None:
    """Train with the recipe and write the model folder ``out``, with ``command`` in its card.

    ``work`` holds the checkpoint, from which a killed run resumes, exactly on the CPU; ``say`` is called with each
    progress line.

    Raises:
        BenchError: the checkpoint is damaged, or of another recipe or device.
        Diverged: the gradient became NaN or infinite.
    """
    with one_core_per_thread(), ThreadPoolExecutor(2) as pool:
        run = Run(config, work, device)
        while run.step < config.steps:
            run.advance(pool)
            if run.step % config.save_every == 0 or run.step == config.steps:
                left = run.seconds / run.step * (config.steps - run.step) / 60
                losses = " ".join(f"{key} {value:.3f}" for key, value in run.curve[-1].items() if key != "step")
                say(f"step {run.step}/{config.steps}, {left:.0f} min left: {losses}")
        run.publish(out, command)
