"""A base whose weights follow the stream without gradients: states that add up chunk by chunk, and their updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from bench.contract.config import MethodConfig
from bench.contract.meta_training import MetaTrained
from bench.data.documents import Document
from bench.lm.base_model import BaseModel
from bench.lm.probe import Ability
from bench.seeds import seed_for
from methods.parts.adapted_layers import Activations, AdaptedLayers
from methods.parts.adapters import Adapter
from methods.parts.weight_generator import ChunkStates, Encoding, Generator, GeneratorTraining

READ_AT_ONCE = 32
"""Chunks that the bare base reads in one batch."""


class GeneratedWeights(MetaTrained):
    """The stream of a method with a generator per adapted layer: documents in, states and updated weights out.

    A subclass's ``Config`` has ``training`` of a kind of :class:`GeneratorTraining`, and for the stream alone
    ``encoding``, to read it in another way than in training, and ``scale``, a factor of the update.
    """

    @classmethod
    def needs(cls, config: MethodConfig) -> Sequence[Ability]:
        """Weights that can change."""
        return ("float_weights",)

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        training: GeneratorTraining = self.config.training
        self.encoding: Encoding = self.config.encoding or training.encoding
        self.layers = AdaptedLayers(lm, training.target, training.blocks)
        hidden = lm.model.get_input_embeddings().embedding_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, "learner"))
            self.generators = [Generator(hidden, *shape, training) for shape in self.layers.shapes()]
        self._learner = nn.ModuleList(self.generators).float().to(lm.device)
        inner = self.generators[0].Q.shape[0]
        self.state: Tensor
        self.register("state", torch.zeros(len(self.layers), inner, inner, device=lm.device))
        self._cache: dict[bytes, list[Activations]] = {}  # of the bare base, by the chunk's tokens

    @property
    def learner(self) -> nn.ModuleList:
        """The generators."""
        return self._learner

    @torch.no_grad()
    def observe(self, document: Document) -> None:
        """Add the document to the states, chunk by chunk, and update the base's weights accordingly."""
        chunks, sequential = self.chunks(document), self.encoding == "sequential"
        if chunks and not sequential:
            self.layers.restore()
        for i, chunk in enumerate(chunks, 1):
            chunk_states = self._generate([self.layers.activations(chunk[None])], [chunk])
            self.state = self.state + torch.cat([layer.states for layer in chunk_states])  # (layers, d_r, d_r)
            if sequential or i == len(chunks):
                self.install()

    @torch.no_grad()
    def install(self) -> None:
        """Set the adapted weights to the base's plus the update times ``scale``."""
        normals = [g.normalize(state) for g, state in zip(self.generators, self.state, strict=True)]
        updates = [g.update(normal) for g, normal in zip(self.generators, normals, strict=True)]
        self.layers.set_updates([self.config.scale * update for update in updates])

    def export(self, folder: str | Path) -> None:
        """Write the update as a peft adapter of the base: LoRA of the rank that the SVD keeps, or of rank d_r."""
        with torch.no_grad():
            factors = [g.factors(state) for g, state in zip(self.generators, self.state, strict=True)]
        self.layers.restore()
        rank = factors[0][1].shape[0]
        adapter = Adapter(self.lm, rank, rank, self.layers.names)
        tensors: dict[str, Tensor] = {}
        for name, (b, a) in zip(self.layers.names, factors, strict=True):
            tensors |= {f"{name}.lora_A": a, f"{name}.lora_B": self.config.scale * b}
        adapter.load_state_dict(tensors)
        adapter.save(folder)
        adapter.remove()
        self.install()

    def chunks(self, document: Document) -> list[Tensor]:
        """The document's tokens after a begin-of-text token, in the fewest chunks, of nearly equal length.

        A segment of a document is read after that token too, without the tokens before it.
        """
        ids = self.lm.tokens(document).token_ids
        if not len(ids):
            return []
        ids = torch.cat([torch.tensor([self.lm.bos_id], device=self.lm.device), ids])
        longest = self.lm.window
        if self.encoding != "concat":
            longest = min(longest, self.config.training.chunk)
        count = math.ceil(len(ids) / longest)
        return list(ids.split(math.ceil(len(ids) / count)))

    def chunk_states(self, groups: Sequence[Sequence[Tensor]]) -> list[ChunkStates]:
        """For each layer the states of all groups' chunks, group by group.

        With encoding=sequential all chunks are read at once: in each layer, chunk t of a group meets the update from
        the group's chunks before it. That equals the recursion of :meth:`observe`, since a layer's update depends only
        on inputs of that layer.
        """
        chunks = [chunk for group in groups for chunk in group]
        if self.encoding != "sequential":
            return self._generate(self._base_activations(chunks), chunks)
        group_of = torch.tensor([k for k, group in enumerate(groups) for _ in group], device=self.lm.device)
        earlier = (group_of[:, None] == group_of).float().tril(-1)  # (rows, rows): 1 for earlier chunks of the group
        mask = padding_mask(chunks)  # (rows, length)
        layers: list[ChunkStates] = []

        def update(i: int, hidden: Tensor, inputs: Tensor) -> Tensor:
            generator = self.generators[i]
            layers.append(generator.chunk_states(hidden, inputs, mask))
            normal = generator.normalize(torch.einsum("rs,sij->rij", earlier, layers[-1].states))  # (rows, d_r, d_r)
            added: Tensor = generator(inputs, normal)  # (rows, length, outputs)
            return added

        with self.layers.adding(update):
            self.layers.last_hidden(pad_sequence(chunks, batch_first=True, padding_value=self.lm.eos_id))
        return layers

    def _generate(self, rows: Sequence[Sequence[Activations]], chunks: Sequence[Tensor]) -> list[ChunkStates]:
        """Each layer's states of chunks, from each chunk's activations, (1, length, ...), by layer."""
        mask = padding_mask(chunks)  # (rows, length)
        layers = []
        for generator, of_layer in zip(self.generators, zip(*rows, strict=True), strict=True):
            hidden, inputs, last = (
                pad_sequence([activation[0] for activation in side], batch_first=True)  # (rows, length, ...)
                for side in zip(*of_layer, strict=True)
            )
            layers.append(generator.chunk_states(hidden, inputs, mask, last))
        return layers

    def _base_activations(self, chunks: Sequence[Tensor]) -> list[list[Activations]]:
        """Activations of each chunk in the bare base, by layer; from the cache if training keeps one."""
        keys = [chunk.cpu().numpy().tobytes() for chunk in chunks]
        known = {key: self._cache[key] for key in keys if key in self._cache}
        new = list({key: chunk for key, chunk in zip(keys, chunks, strict=True) if key not in known}.items())
        for start in range(0, len(new), READ_AT_ONCE):
            batch = new[start : start + READ_AT_ONCE]
            ids = pad_sequence([chunk for _, chunk in batch], batch_first=True, padding_value=self.lm.eos_id)
            layers = self.layers.activations(ids)
            for row, (key, chunk) in enumerate(batch):
                tokens = (slice(row, row + 1), slice(len(chunk)))
                known[key] = [Activations(*(side[tokens].clone() for side in layer)) for layer in layers]
                if self.config.training.remember:
                    self._cache[key] = known[key]
        return [known[key] for key in keys]


def padding_mask(chunks: Sequence[Tensor]) -> Tensor:
    """1 for a token, 0 for padding on the right: (rows, length)."""
    return pad_sequence([torch.ones(len(chunk), device=chunk.device) for chunk in chunks], batch_first=True)
