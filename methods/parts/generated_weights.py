"""A base whose weights are written by forward passes: states, the updates they stand for, and reading into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.pytorch_utils import Conv1D

from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained
from bench.data.documents import Document
from bench.errors import BenchError
from bench.lm.base_model import BaseModel
from bench.seeds import seed_for
from methods.parts.adapters import Adapter, Targets, target_modules
from methods.parts.parameters import blocks
from methods.parts.weight_generator import Encoding, Generator, GeneratorTraining, Written

Read = tuple[Tensor, Tensor, Tensor]
"""A block's input, the adapted layer's own input, and the base's last hidden state, (rows, length, ...) each."""


class WrittenWeights(MetaTrained):
    """The stream of a method whose generators write states while the base reads, and updates of its weights from them.

    A subclass's ``Config`` has ``training`` of a kind of :class:`GeneratorTraining`, and ``encoding`` to read the
    stream in another way than in training.
    """

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        plan: GeneratorTraining = self.config.training
        self.encoding: Encoding = self.config.encoding or plan.encoding
        self.names, self.places = self._places(plan)
        hidden = lm.model.get_input_embeddings().embedding_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(plan.seed, "learner"))
            made = [Generator(hidden, *_shape(module), plan) for _, module in self.places]
        self._learner = nn.ModuleList(made).float().to(lm.device)
        self.generators: list[Generator] = made
        inner = made[0].Q.shape[0]
        self.state: Tensor
        self.register("state", torch.zeros(len(made), inner, inner, device=lm.device))
        self._remembered: dict[bytes, list[Read]] = {}

    def _places(self, plan: GeneratorTraining) -> tuple[list[str], list[tuple[nn.Module, Any]]]:
        """Names of the adapted layers, and each layer behind the block that it is in.

        Raises:
            BenchError: the model has no such layers or blocks.
        """
        model = self.lm.model
        found_blocks, modules = list(blocks(model)), dict(model.named_modules())
        wanted = range(len(found_blocks)) if plan.blocks is None else plan.blocks
        if any(index >= len(found_blocks) for index in wanted):
            raise BenchError(
                f"The base has {len(found_blocks)} blocks, counted from 0, and blocks={wanted} are asked for."
            )
        kinds: dict[str, tuple[Targets, ...]] = {
            "attention_output": ("attention_output",),
            "mlp_output": ("mlp",),
            "both": ("attention_output", "mlp"),
        }
        found = [{modules[name]: name for name in target_modules(model, each)} for each in kinds[plan.target]]
        names, places = [], []
        for block in (found_blocks[index] for index in sorted(set(wanted))):
            for some in found:  # in the order in which they compute
                last = [module for module in block.modules() if module in some][-1]
                names.append(some[last])
                places.append((block, last))
        return names, places

    @property
    def learner(self) -> nn.ModuleList:
        """The generators."""
        return self._learner

    @torch.no_grad()
    def observe(self, document: Document) -> None:
        """Write the document into the states, chunk by chunk, and put the update that they stand for into the base."""
        for chunk in self.chunks(document):
            if self.encoding != "sequential":
                self._put([None] * len(self.places))
            written = self._written([self._read(chunk[None])], [chunk])
            self.state = self.state + torch.cat([each.state for each in written])
            if self.encoding == "sequential":
                self.install()
        self.install()

    @torch.no_grad()
    def install(self) -> None:
        """Set the adapted weights to the base's own plus the update."""
        normals = [g.normalize(state) for g, state in zip(self.generators, self.state, strict=True)]
        self._put([g.update(normal) for g, normal in zip(self.generators, normals, strict=True)])

    def _put(self, updates: Sequence[Tensor | None]) -> None:
        for name, (_, module), update in zip(self.names, self.places, updates, strict=True):
            loaded = self.lm.pristine(f"{name}.weight")
            if update is None:
                module.weight.data.copy_(loaded)
            else:
                turned = update.mT if isinstance(module, Conv1D) else update
                module.weight.data.copy_(loaded.to(turned.dtype) + turned)

    def export(self, folder: str | Path) -> None:
        """Write the update as a peft adapter of the base (LoRA of the rank kept; of rank d_r without the SVD)."""
        with torch.no_grad():
            pairs = [g.factors(state) for g, state in zip(self.generators, self.state, strict=True)]
        self._put([None] * len(self.places))
        rank = pairs[0][1].shape[0]
        adapter = Adapter(self.lm, rank, rank, self.names)
        made = {f"{name}.lora_A": a for name, (_, a) in zip(self.names, pairs, strict=True)}
        made |= {f"{name}.lora_B": b for name, (b, _) in zip(self.names, pairs, strict=True)}
        adapter.load_state_dict(made)
        adapter.save(folder)
        adapter.remove()
        self.install()

    def chunks(self, document: Document) -> list[Tensor]:
        """The document's tokens behind a begin-of-text token, in as few pieces of nearly equal length as may be.

        A piece of a document (a segment) is read behind that token too, without what comes before it.
        """
        ids = self.lm.tokens(document).token_ids
        if not len(ids):
            return []
        return self._cut(torch.cat([torch.tensor([self.lm.bos_id], device=self.lm.device), ids]))

    def _cut(self, ids: Tensor) -> list[Tensor]:
        longest = self.lm.window
        if self.encoding != "concat":
            longest = min(longest, self.config.training.chunk)
        pieces = -(-len(ids) // longest)
        return list(ids.split(-(-len(ids) // pieces)))

    @contextmanager
    def _adapting(self, normal: Callable[[int, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
        """While entered, layer i adds the update of ``normal(i, block's input, layer's input)`` row by row.

        The function returns N, (rows, d_r, d_r), or None for the bare base.
        """
        before: dict[int, Tensor] = {}
        handles = []
        for i, (block, module) in enumerate(self.places):

            def keep(_: Any, given: tuple[Any, ...], named: dict[str, Any], i: int = i) -> None:
                before[i] = given[0] if given else named["hidden_states"]

            def add(_: Any, given: tuple[Any, ...], output: Tensor, i: int = i) -> Tensor | None:
                found = normal(i, before[i], given[0])
                return None if found is None else output + self.generators[i](given[0], found).to(output.dtype)

            handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
            handles.append(module.register_forward_hook(add))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _body(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.lm.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden

    @torch.no_grad()
    def _read(self, ids: Tensor) -> list[Read]:
        """What the model as it is makes of rows (rows, length): each layer's block input and own, and its last."""
        found: list[tuple[Tensor, Tensor]] = []
        with self._adapting(lambda _, hidden, inputs: found.append((hidden, inputs))):
            last = self._body(ids)
        return [(hidden, inputs, last) for hidden, inputs in found]

    def _written(self, read: Sequence[Sequence[Read]], chunks: Sequence[Tensor]) -> list[Written]:
        """What chunks leave in each layer, from what was read of each: (1, length, ...)."""
        mask = mask_of(chunks)
        written = []
        for i, generator in enumerate(self.generators):
            hidden, inputs, last = (
                pad_sequence([row[i][side][0] for row in read], batch_first=True) for side in range(3)
            )
            written.append(generator.write(hidden, inputs, mask, last))
        return written

    def write(self, groups: Sequence[Sequence[Tensor]]) -> list[Written]:
        """What each chunk of each group leaves in each layer; the rows are all groups' chunks, group by group.

        Where encoding is sequential all are read at once, layer by layer: chunk t of a group with the update from the
        group's chunks before it. That equals the recursion of :meth:`observe`, since a layer's update follows from
        what goes into that layer alone.
        """
        chunks = [chunk for group in groups for chunk in group]
        if self.encoding != "sequential":
            return self._written(self._recall(chunks), chunks)
        owner = torch.tensor([k for k, group in enumerate(groups) for _ in group], device=self.lm.device)
        earlier = (owner[:, None] == owner).float().tril(-1)
        mask = mask_of(chunks)
        written: list[Written] = []

        def normal(i: int, hidden: Tensor, inputs: Tensor) -> Tensor:
            written.append(self.generators[i].write(hidden, inputs, mask))
            return self.generators[i].normalize(torch.einsum("rs,sij->rij", earlier, written[-1].state))

        with self._adapting(normal):
            self._body(pad_sequence(chunks, batch_first=True, padding_value=self.lm.eos_id))
        return written

    def _recall(self, chunks: Sequence[Tensor]) -> list[list[Read]]:
        """What the bare base makes of each chunk, from memory where it was read before and that is kept."""
        keys = [chunk.cpu().numpy().tobytes() for chunk in chunks]
        found = {key: self._remembered[key] for key in keys if key in self._remembered}
        new = list({key: chunk for key, chunk in zip(keys, chunks, strict=True) if key not in found}.items())
        for start in range(0, len(new), 32):
            some = new[start : start + 32]
            read = self._read(pad_sequence([c for _, c in some], batch_first=True, padding_value=self.lm.eos_id))
            for row, (key, chunk) in enumerate(some):
                here = (slice(row, row + 1), slice(len(chunk)))
                found[key] = [(h[here].clone(), x[here].clone(), last[here].clone()) for h, x, last in read]
                if self.config.training.remember:
                    self._remembered[key] = found[key]
        return [found[key] for key in keys]


def mask_of(chunks: Sequence[Tensor]) -> Tensor:
    """1 for a token, 0 for padding on the right: (rows, length)."""
    return pad_sequence([torch.ones(len(chunk), device=chunk.device) for chunk in chunks], batch_first=True)


def _shape(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
