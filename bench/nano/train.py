"""The recipe of the embedded model: a small Llama that reads, remembers, and can be updated by a gradient step.

:func:`train` writes a Hugging Face model folder. Every training step is made of entities of *newsworld*:

- *known* entities (those of ``qa_train``): their facts in ever new documents and, closed book, in questions. The
  embedding of a name becomes a code of the facts that documents and questions both read;
- *new* entities (random facts; a random vector stands in for the embedding of the name): a document followed by a
  question to read it by, and, closed book, questions after one rehearsed update, a gradient step on that vector by
  the next-token loss of the values in the document. It makes the code one that such a step can write.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from bench import machine
from bench.errors import BenchError, Diverged
from bench.nano.batches import Batch, Columns, Texts, Writer, build_tokenizer, load_world
from bench.nano.card import card
from bench.nano.config import Recipe, load_recipe
from bench.paths import DATASETS, MODELS

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

RECIPE = MODELS / "nano" / "recipe.yaml"


def build_model(recipe: Recipe, vocabulary: int, names: Tensor) -> LlamaForCausalLM:
    """An untrained model. Output rows start as a copy of the embeddings, so that copying a word needs no learning."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=recipe.width,
            intermediate_size=recipe.feed_forward,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=recipe.window,
            initializer_range=recipe.width**-0.5,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    model.set_attn_implementation("eager")  # the fused kernels cannot be differentiated twice
    rows = torch.randn(vocabulary, recipe.width) * recipe.word_std
    rows[names] *= recipe.name_std / recipe.word_std
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(rows)
        model.lm_head.weight.copy_(rows)
    return model


def token_losses(
    model: LlamaForCausalLM, texts: Texts, columns: Columns, keys: Sequence[str], rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Mean NLL (nats) of the tokens scored under each key; ``rows`` (entities, width) replace the names' embeddings."""
    embedded = model.model.embed_tokens(texts.ids)
    if rows is not None:
        embedded = torch.where(texts.name[..., None], rows[texts.owner][:, None], embedded)
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, :-1]
    masks = {key: texts.scored[key][:, 1:] for key in keys}
    scored = torch.stack(list(masks.values())).any(0)
    logits = functional.linear(hidden[scored], model.lm_head.weight[columns.tokens]).float() + columns.offset
    nll = functional.cross_entropy(logits, columns.place[texts.ids[:, 1:][scored]], reduction="none")
    return {key: nll[mask[scored]].mean() for key, mask in masks.items()}


def known_losses(model: LlamaForCausalLM, recipe: Recipe, batch: Batch, columns: Columns, _: int) -> dict[str, Tensor]:
    """The parts of the loss that are about known entities; see :class:`LossWeights`."""
    document = token_losses(model, batch.documents, columns, ["document", "fact"])
    answers = token_losses(model, batch.questions, columns, ["answer"])
    return {"known_text": document["document"], "known_fact": document["fact"], "recall": answers["answer"]}


def new_losses(model: LlamaForCausalLM, recipe: Recipe, batch: Batch, columns: Columns, step: int) -> dict[str, Tensor]:
    """The parts of the loss that are about new entities; see :class:`LossWeights`.

    The rehearsed update, r' = r - rate * dL/dr with L the mean loss of the document's values, is differentiated
    through.
    """
    chance = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    rows = (torch.randn(len(batch.rows), recipe.width, generator=chance) * recipe.name_std).requires_grad_()
    low, high = recipe.rehearsal_rate
    rate = low * (high / low) ** float(torch.rand((), generator=chance))
    document = token_losses(model, batch.documents, columns, ["unnamed", "fact", "answer"], rows)
    # The mean over the batch times the entities is each document's own mean: all state equally many facts.
    (slope,) = torch.autograd.grad(document["fact"] * len(rows), rows, create_graph=True)
    answers = token_losses(model, batch.questions, columns, ["answer"], rows - rate * slope)
    return {"new_text": document["unnamed"], "read": document["answer"], "update": answers["answer"]}


class Run:
    """A training run: model, optimizer and curve; saved and resumed so that an interruption changes nothing."""

    def __init__(self, recipe: Recipe, work: Path) -> None:
        world = load_world(recipe.dataset)
        self.recipe, self.file = recipe, work / "checkpoint.safetensors"
        self.tokenizer = build_tokenizer(sorted(world.vocabulary()), recipe.merges)
        self.writer = Writer(recipe, world, self.tokenizer)
        self.model = build_model(recipe, len(self.tokenizer), self.writer.names)
        layers = [p for name, p in self.model.named_parameters() if ".layers." in name and p.dim() == 2]
        others = [p for name, p in self.model.named_parameters() if ".layers." not in name or p.dim() != 2]
        groups = [{"params": layers, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)
        self.curve: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []
        self.step, self.seconds = 0, 0.0
        self.identity = hashlib.sha256((recipe.model_dump_json() + data_hash(recipe.dataset)).encode()).hexdigest()
        if self.file.is_file():
            self.load()

    def advance(self, pool: ThreadPoolExecutor) -> None:
        """One optimizer step. The two halves of the loss run side by side, each on one core: small operations gain
        nothing from being split."""
        recipe, started = self.recipe, time.perf_counter()
        rate = min((self.step + 1) / recipe.warmup, (1 + math.cos(math.pi * self.step / recipe.steps)) / 2)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * recipe.learning_rate
        known, new = self.writer.batch(self.step, "known"), self.writer.batch(self.step, "new")
        columns = self.writer.columns(self.step, known, new)
        parameters = list(self.model.parameters())

        def half(part: Any, batch: Batch) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
            with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                losses = part(self.model, recipe, batch, columns, self.step)
            total = sum(getattr(recipe.weights, key) * loss for key, loss in losses.items())
            slopes = torch.autograd.grad(total, parameters, allow_unused=True)
            return {key: float(loss.detach()) for key, loss in losses.items()}, slopes

        first, second = pool.submit(half, known_losses, known), pool.submit(half, new_losses, new)
        for parameter, a, b in zip(parameters, first.result()[1], second.result()[1], strict=True):
            parameter.grad = a + b if a is not None and b is not None else a if b is None else b
        norm = torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        if not torch.isfinite(norm):
            raise Diverged(f"The gradient norm became {norm.item()} in step {self.step}.")
        self.optimizer.step()
        self.step += 1
        self.seconds += time.perf_counter() - started
        self.recent.append(first.result()[0] | second.result()[0])
        if self.step % recipe.save_every == 0 or self.step == recipe.steps:
            means = {key: sum(row[key] for row in self.recent) / len(self.recent) for key in self.recent[0]}
            self.curve.append({"step": self.step, **{key: round(mean, 4) for key, mean in means.items()}})
            self.recent.clear()
            self.save()

    def save(self) -> None:
        """Write the checkpoint in one piece or not at all."""
        from safetensors.torch import save_file

        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        progress = {"step": self.step, "seconds": self.seconds, "curve": self.curve, "identity": self.identity}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix(".partial")
        save_file(tensors, partial, metadata={"progress": json.dumps(progress)})
        os.replace(partial, self.file)

    def load(self) -> None:
        """Go on from the checkpoint.

        Raises:
            BenchError: it was written by another recipe or with other data.
        """
        from safetensors import safe_open

        with safe_open(self.file, framework="pt") as file:
            progress = json.loads(file.metadata()["progress"])
            if progress["identity"] != self.identity:
                raise BenchError(f"{self.file} is of another recipe or other data; delete it to start afresh.")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        self.step, self.seconds, self.curve = progress["step"], progress["seconds"], progress["curve"]
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                states.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": states})

    def publish(self, out: Path, recipe_file: Path) -> None:
        """Write the model folder: weights (bfloat16), configuration, tokenizer, recipe, curve and card."""
        fresh = self.file.parent / "model"
        shutil.rmtree(fresh, ignore_errors=True)
        model: Any = self.model
        model.to(torch.bfloat16).save_pretrained(fresh)
        self.tokenizer.save_pretrained(fresh)
        shutil.copy(recipe_file, fresh / "recipe.yaml")
        table = io.StringIO()
        writer = csv.DictWriter(table, self.curve[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.curve)
        (fresh / "curve.csv").write_text(table.getvalue(), encoding="utf-8")
        facts = {
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "vocabulary": f"{len(self.tokenizer):,}",
            "layers": str(self.recipe.layers),
            "width": str(self.recipe.width),
            "dataset": self.recipe.dataset,
            "data_hash": data_hash(self.recipe.dataset),
            "seed": str(self.recipe.seed),
            "steps": f"{self.recipe.steps:,}",
            "minutes": f"{self.seconds / 60:.0f}",
        }
        (fresh / "README.md").write_text(card(facts, self.curve), encoding="utf-8")
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted(fresh.iterdir()):
            os.replace(shutil.copy(path, out / f".{path.name}.partial"), out / path.name)


def data_hash(dataset: str) -> str:
    """SHA-256 (hexadecimal) of the dataset's generator, which makes all that the model is trained on."""
    return hashlib.sha256((DATASETS / dataset / "generate.py").read_bytes()).hexdigest()


@contextmanager
def one_core_per_thread() -> Iterator[None]:
    """Operations do not split themselves, and freed memory stays with the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    machine.keep_freed()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(recipe: Path, out: Path, work: Path) -> None:
    """Train by the recipe and write the model folder ``out``; ``work`` holds the checkpoint, from which a killed run
    goes on exactly.

    Raises:
        BenchError: a wrong recipe, or a checkpoint of another one.
        Diverged: the gradient became NaN or infinite.
    """
    settings = load_recipe(recipe)
    with one_core_per_thread(), ThreadPoolExecutor(2) as pool:
        run = Run(settings, work)
        while run.step < settings.steps:
            run.advance(pool)
            if run.step % settings.save_every == 0 or run.step == settings.steps:
                left = run.seconds / run.step * (settings.steps - run.step) / 60
                losses = " ".join(f"{key} {value:.3f}" for key, value in run.curve[-1].items() if key != "step")
                print(f"step {run.step}/{settings.steps}, {left:.0f} min left: {losses}", flush=True)
        run.publish(out, recipe)
