"""Training batches of the embedded model: documents and questions about known and about new entities."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.paths import DATASETS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from bench.nano.config import NanoConfig

END = "<|endoftext|>"


def load_world(dataset: str) -> ModuleType:
    """Load the generator ``datasets/<dataset>/generate.py`` by its path, since ``datasets`` must not be a package.

    Raises:
        BenchError: the dataset has no generator.
    """
    name, path = f"{dataset}_generate", DATASETS / dataset / "generate.py"
    if not path.is_file():
        raise BenchError(f"{dataset} is no dataset with a generator, such as newsworld, of which nano can be trained.")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def build_tokenizer(words: Sequence[str], merges: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each of ``words``, with a space before it, is one token.

    With ``ignore_merges`` a word in the vocabulary becomes one token; other text falls back to merges and bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = byte_level
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1 + len(alphabet) + merges, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    pieces.train_from_iterator([f" {word}" for word in words] + list(words), trainer)
    learned = json.loads(pieces.to_str())["model"]
    vocabulary: dict[str, int] = dict(learned["vocab"])
    for word in words:
        vocabulary.setdefault(byte_level.pre_tokenize_str(f" {word}")[0][0], len(vocabulary))
    whole = Tokenizer(models.BPE(vocabulary, [tuple(pair) for pair in learned["merges"]], ignore_merges=True))
    whole.pre_tokenizer = byte_level
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens([END])
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token=END, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False
    )


class Part(NamedTuple):
    """A sequence before encoding: a document or "", (question, answer) pairs, and character spans of fact values."""

    entity: int
    document: str
    qa_pairs: Sequence[tuple[str, str]]
    spans: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Texts:
    """n sequences, padded on the right to T tokens: end token, document, then question, answer, end token in turn."""

    ids: Tensor
    """(n, T) Tokens; 0 is the end token and the padding."""
    entity: Tensor
    """(n,) Index in the batch of the entity that each sequence is about."""
    is_name: Tensor
    """(n, T) True at the name of that entity."""
    masks: dict[str, Tensor]
    """(n, T) True at tokens of the ``document``, all but the name (``unnamed``), ``fact`` values, and ``answer``s."""

    def to(self, device: str) -> Texts:
        """The same texts on a device."""
        masks = {key: mask.to(device) for key, mask in self.masks.items()}
        return Texts(self.ids.to(device), self.entity.to(device), self.is_name.to(device), masks)


@dataclass(frozen=True)
class Batch:
    """Entities of one step: documents, followed by questions if the entities are new, and closed-book questions."""

    names: Tensor
    """(entities,) Token of each name."""
    documents: Texts
    questions: Texts

    def to(self, device: str) -> Batch:
        """The same batch on a device."""
        return Batch(self.names.to(device), self.documents.to(device), self.questions.to(device))


@dataclass(frozen=True)
class Columns:
    """The vocabulary of a step's softmax: words, the names of the batch, and a sample of the other names."""

    tokens: Tensor
    """(columns,) Tokens."""
    offset: Tensor
    """(columns,) Added to the logits: log(other names / sampled names) for a sampled name, else 0."""
    index: Tensor
    """(vocabulary,) Column of each token; -1 for a token without one."""

    def to(self, device: str) -> Columns:
        """The same columns on a device."""
        return Columns(self.tokens.to(device), self.offset.to(device), self.index.to(device))


class Writer:
    """Writes the batches of a training run; each depends only on the config and the step."""

    def __init__(self, config: NanoConfig, world: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        self.config, self.world, self.tokenizer = config, world, tokenizer
        names = world.names_by_split()
        self.spare: list[str] = names["spare"]
        self.names = torch.tensor([self.token(name) for split in names.values() for name in split])
        self.facts: dict[Any, dict[str, str]] = {}
        for report in world.reports("qa_train", names["qa_train"]):
            self.facts.setdefault(report.who, {}).update(report.facts)
        self.known_entities = list(self.facts)

    def token(self, name: str) -> int:
        """The token of a name with a space before it."""
        ids = self.tokenizer(f" {name}").input_ids
        assert len(ids) == 1, name
        return int(ids[0])

    def batch(self, step: int, kind: str) -> Batch:
        """Documents and questions about ``known`` entities with their facts, or about ``new`` ones with random facts.

        Noise sentences are added gradually: the model learns to read much sooner from plain documents.
        """
        config, world = self.config, self.world
        rng = world.Random(f"{config.seed} {kind} {step}")
        share = min(max(step / config.plain_steps - 1, 0.0), 1.0)
        max_noise = share * (config.noise_known if kind == "known" else config.noise_new)
        documents: list[Part] = []
        questions: list[Part] = []
        tokens = []
        for index in range(config.known if kind == "known" else config.new):
            if kind == "known":
                epoch, position = divmod(step * config.known + index, len(self.known_entities))
                who = self.known_entities[self._order(epoch)[position]]
                facts = dict(rng.mix(list(self.facts[who].items()))[: world.FACTS_PER_DOCUMENT])
            else:
                who = world.entity(rng, rng.pick(self.spare))
                facts = world.choose_facts(rng, world.Deck(rng), who)
            noise = int(rng.random() * (max_noise + 1))
            outlet = world.outlet(rng) if rng.random() < share else world.Outlet("News", "")
            text, spans = world.document(rng, who, facts, outlet, noise)
            qa_pairs = [(f"\n{world.question(rng, who, key)}", f" {facts[key]}") for key in rng.mix(list(facts))]
            documents.append(Part(index, text, qa_pairs if kind == "new" else [], spans))
            for key, value in facts.items():
                questions.append(Part(index, "", [(world.question(rng, who, key), f" {value}")]))
            tokens.append(self.token(who.name))
        names = torch.tensor(tokens)
        return Batch(names, self._texts(documents, names), self._texts(questions, names))

    def columns(self, step: int, *batches: Batch) -> Columns:
        """The columns of a step's softmax; most of the vocabulary is names, and few of them are in a batch."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        is_other = torch.zeros(len(self.tokenizer), dtype=torch.bool)
        is_other[self.names] = True
        for batch in batches:
            is_other[batch.names] = False
        words, others = (~is_other).nonzero()[:, 0], is_other.nonzero()[:, 0]
        sample = others[torch.randperm(len(others), generator=generator)[: self.config.sampled_names]]
        tokens = torch.cat([words, sample])
        offset = torch.zeros(len(tokens))
        offset[len(words) :] = math.log(len(others) / len(sample))
        index = torch.full((len(is_other),), -1)
        index[tokens] = torch.arange(len(tokens))
        return Columns(tokens, offset, index)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (one writer per run)
    def _order(self, epoch: int) -> list[int]:
        """The order of the known entities in an epoch; each comes once."""
        rng = self.world.Random(f"{self.config.seed} order {epoch}")
        order: list[int] = rng.mix(range(len(self.known_entities)))
        return order

    def _texts(self, parts: Sequence[Part], names: Tensor) -> Texts:
        texts = self.tokenizer.backend_tokenizer.encode_batch([part.document for part in parts])
        sequences: list[list[int]] = []
        answers: list[list[range]] = []
        for part, text in zip(parts, texts, strict=True):
            sequences.append([0, *text.ids])
            answers.append([])
            for question, answer in part.qa_pairs:
                sequences[-1] += self.tokenizer(question).input_ids
                start = len(sequences[-1])
                sequences[-1] += [*self.tokenizer(answer).input_ids, 0]
                answers[-1].append(range(start, len(sequences[-1])))
        ids = torch.zeros(len(parts), max(map(len, sequences)), dtype=torch.long)
        masks = {key: torch.zeros(ids.shape, dtype=torch.bool) for key in ("document", "fact", "answer")}
        for i, (part, text) in enumerate(zip(parts, texts, strict=True)):
            ids[i, : len(sequences[i])] = torch.tensor(sequences[i])
            masks["document"][i, 1 : 1 + len(text.ids)] = True
            for span in answers[i]:
                masks["answer"][i, span.start : span.stop] = True
            for k, (start, end) in enumerate(text.offsets):
                masks["fact"][i, 1 + k] = any(start < stop and first < end for first, stop in part.spans)
        entity = torch.tensor([part.entity for part in parts])
        is_name = ids == names[entity][:, None]
        masks["unnamed"] = masks["document"] & ~is_name
        return Texts(ids, entity, is_name, masks)
