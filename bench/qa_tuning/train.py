"""The training run: data, weights that learn, optimizer and curve, saved at each validation and resumed from there."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from bench.contract.meta_training import evenly_spaced, usable
from bench.data.documents import Episode
from bench.errors import BenchError, Diverged
from bench.files import read_tensors, write_tensors
from bench.lm.base_model import BaseModel
from bench.qa_tuning.packing import Item, items, packed_losses, unpacked_losses, why_not_packed
from bench.qa_tuning.recipe import QaRecipe
from bench.seeds import seed_for

ADAPTER = "default"
"""The name that peft gives the adapter inside the model."""
REMEDY = "Delete it to start again."

Say = Callable[[str], None]
"""Called with a line on the progress."""


def add_adapter(lm: BaseModel, rank: int, scale: float, seed: int) -> None:
    """Freeze the base, and insert LoRA on all its linear layers but the output layer.

    Raises:
        BenchError: peft cannot adapt this base.
    """
    import peft

    config: Any = peft.LoraConfig(r=rank, target_modules="all-linear")
    config.lora_alpha = scale * rank  # declared int, but any number works
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # peft warns about Conv1D layers, which it handles
        torch.manual_seed(seed_for(seed, "adapter"))
        try:
            peft.inject_adapter_in_model(config, lm.model, ADAPTER)
        except ValueError as error:
            raise BenchError(f"peft cannot adapt {type(lm.model).__name__}: {error} Set rank=null.") from None


class Run:
    """A tuning run on a base that was just loaded.

    ``train`` and ``validation`` are the episodes of each dataset. ``identity`` says what the run depends on. The run
    continues from ``file`` if it is there: the weights that result are the same bits as without the interruption.

    Raises:
        BenchError: the checkpoint is damaged or of another run, a dataset has no documents with questions, or peft
            cannot adapt the base.
    """

    def __init__(
        self,
        lm: BaseModel,
        recipe: QaRecipe,
        train: Mapping[str, Sequence[Episode]],
        validation: Mapping[str, Sequence[Episode]],
        identity: str,
        file: Path,
    ) -> None:
        self.lm, self.recipe, self.identity, self.file = lm, recipe, identity, file
        held_out = {episode.document.id for own in validation.values() for episode in own}
        others = {name: [e for e in own if e.document.id not in held_out] for name, own in train.items()}
        self.train = {name: _usable(own, name, "qa_train") for name, own in others.items()}
        self.validation = {
            name: evenly_spaced(_usable(own, name, "qa_validation"), recipe.validation_documents)
            for name, own in validation.items()
        }
        self.why_not_packed = why_not_packed(lm, self._longest())
        if recipe.rank is not None:
            add_adapter(lm, recipe.rank, recipe.scale, recipe.seed)
        self.parameters: dict[str, Parameter] = {
            name: parameter for name, parameter in lm.model.named_parameters() if parameter.requires_grad
        }
        self.optimizer = torch.optim.AdamW(self.parameters.values(), weight_decay=recipe.weight_decay)
        self.step, self.best_step, self.seconds = 0, 0, 0.0
        self.curve: list[dict[str, float]] = []
        self.recent: list[float] = []
        self.best: dict[str, Tensor] = {}
        self._order = cache(self._order_of_pass)
        if file.is_file():
            self._load()

    def run(self, say: Say = lambda _: None) -> None:
        """Tune to the end, and leave the weights with the lowest validation loss in the model.

        Raises:
            Diverged: the gradient became NaN or infinite.
        """
        if self.why_not_packed:
            say(f"Each item is read in a row of its own: {self.why_not_packed}.")
        while not self.finished:
            started = time.perf_counter()
            if self.curve:
                for _ in range(min(self.recipe.validate_every, self.recipe.steps - self.step)):
                    self._advance()
            self._validate()
            self.seconds += time.perf_counter() - started
            self._save()
            minutes = self.seconds / max(1, self.step) * (self.recipe.steps - self.step) / 60
            left = f", {minutes:.0f} min left" if self.step else ""
            losses = " ".join(f"{key} {value:.3f}" for key, value in self.curve[-1].items() if key != "step")
            say(f"step {self.step}/{self.recipe.steps}{left}: {losses}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.best[name])

    @property
    def finished(self) -> bool:
        """True after the last step, and when the patience is at its end."""
        patience = self.recipe.patience
        waited = sum(row["step"] > self.best_step for row in self.curve)
        return bool(self.curve) and (self.step >= self.recipe.steps or (patience is not None and waited >= patience))

    def _losses(self, items: Sequence[Item]) -> Tensor:
        return unpacked_losses(self.lm, items) if self.why_not_packed else packed_losses(self.lm, items)

    def _advance(self) -> None:
        """Take one optimizer step on the mean loss of all answer tokens in its documents."""
        count = self.recipe.documents
        packs = [pack for i in range(count) if (pack := self._pack(self.step * count + i))]
        tokens = sum(len(item.answer) for pack in packs for item in pack)
        total = 0.0
        with self.lm.autocast():  # so that each weight is cast only once
            for pack in packs:
                loss = self._losses(pack).sum() / tokens
                with torch.autocast(self.lm.device.type, enabled=False):  # what is rounded stays in float32
                    loss.backward()
                total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        if not torch.isfinite(norm):
            raise Diverged(f"The gradient became {norm.item()} in step {self.step}; a lower learning rate may help.")
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.recent.append(total)

    def _pack(self, index: int) -> list[Item]:
        """The items on the document at a place of the endless sequence of turns."""
        turns = self.recipe.datasets
        round_, turn = divmod(index, len(turns))
        name = turns[turn]
        place = round_ * turns.count(name) + turns[:turn].count(name)
        epoch, position = divmod(place, len(self.train[name]))
        episode = self.train[name][self._order(name, epoch)[position]]
        draws = torch.rand(len(episode.questions), generator=_generator(self.recipe.seed, "closed", name, place))
        share = self.recipe.closed_share
        closed = [i for i, draw in enumerate(draws.tolist()) if draw < share / (1 - share)]
        everything = range(len(episode.questions))
        return items(self.lm, episode, everything, True) + (items(self.lm, episode, closed, False) if closed else [])

    def _order_of_pass(self, name: str, epoch: int) -> list[int]:
        """A new order of a dataset's documents in each pass over them."""
        generator = _generator(self.recipe.seed, "pass", name, epoch)
        order: list[int] = torch.randperm(len(self.train[name]), generator=generator).tolist()
        return order

    def _longest(self) -> list[Item]:
        """The items on the longest document, with and without it."""
        episodes = [episode for own in (*self.train.values(), *self.validation.values()) for episode in own]
        longest = max(episodes, key=lambda episode: len(episode.document.text.encode()))  # nearly as tokens
        everything = range(min(2, len(longest.questions)))
        return [item for flag in (True, False) for item in items(self.lm, longest, everything, flag)]

    def _validate(self) -> None:
        """Add a row to the curve, and keep the weights if their loss is the lowest so far.

        The loss is that of training: a mean over the datasets and over the two kinds of items in their shares.
        """
        row = {"step": float(self.step)}
        if self.recent:
            row["train_loss"] = sum(self.recent) / len(self.recent)
        means: dict[str, list[float]] = {"with_document": [], "without": []}
        losses = {}
        for name, episodes in self.validation.items():
            for kind, flag in (("with_document", True), ("without", False)):
                rows = [items(self.lm, e, range(len(e.questions)), flag) for e in episodes]
                with self.lm.inference():
                    values = torch.cat([self._losses(own) for own in rows if own]).double()
                losses[f"{name}_{kind}"] = values.mean().item()
                means[kind].append(losses[f"{name}_{kind}"])
        share, count = self.recipe.closed_share, len(self.validation)
        loss = ((1 - share) * sum(means["with_document"]) + share * sum(means["without"])) / count
        if not self.curve or loss < min(earlier["validation_loss"] for earlier in self.curve):
            self.best = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
            self.best_step = self.step
        self.curve.append({**row, "validation_loss": loss, **losses})
        self.recent.clear()

    def _save(self) -> None:
        tensors = {f"weights.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for name, parameter in self.parameters.items():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"moments.{name}.{key}": value for key, value in moments.items()}
        facts = {
            "identity": self.identity,
            "step": self.step,
            "best_step": self.best_step,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        write_tensors(self.file, tensors, facts)

    def _load(self) -> None:
        tensors, facts = read_tensors(self.file, REMEDY)
        if facts.get("identity") != self.identity:
            raise BenchError(f"{self.file} is of another base, recipe, data or code. {REMEDY}")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"weights.{name}"])
                self.best[name] = tensors[f"best.{name}"].to(parameter.device)
                state = {
                    key: tensors[f"moments.{name}.{key}"].to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"moments.{name}.{key}" in tensors
                }
                if state:
                    self.optimizer.state[parameter] = state
        self.step, self.best_step = facts["step"], facts["best_step"]
        self.seconds, self.curve = facts["seconds"], facts["curve"]


def _usable(episodes: Sequence[Episode], dataset: str, split: str) -> list[Episode]:
    """The episodes with questions."""
    own = usable(episodes)
    if not own:
        raise BenchError(f"The {split} split of {dataset} has no questions to tune on.")
    return own


def _generator(*name: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(*name))
