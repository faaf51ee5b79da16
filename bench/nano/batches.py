"""What the embedded model is trained on: batches of documents and questions about known and about new entities."""

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

from bench.paths import DATASETS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from bench.nano.config import Recipe

END = "<|endoftext|>"


def load_world(dataset: str) -> ModuleType:
    """The generator ``datasets/<dataset>/generate.py``, by path, because ``datasets`` must not be a package."""
    name = f"{dataset}_generate"
    spec = importlib.util.spec_from_file_location(name, DATASETS / dataset / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def build_tokenizer(words: Sequence[str], merges: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each of ``words``, with a space before it, is one token.

    ``ignore_merges`` takes a word that is in the vocabulary as a whole; other text falls back to merges and bytes.
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
    """A sequence before encoding: a document or "", questions with their answers, and the spans of the facts."""

    owner: int
    document: str
    asked: Sequence[tuple[str, str]]
    spans: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Texts:
    """n sequences, padded on the right to T tokens: end token, document, and question, answer, end token in turn."""

    ids: Tensor
    """(n, T) Tokens; 0 is the end token and the padding."""
    owner: Tensor
    """(n,) Which entity of the batch each sequence is about."""
    name: Tensor
    """(n, T) Whether a token is the entity's own name."""
    scored: dict[str, Tensor]
    """(n, T) Tokens of the ``document``, those that are ``unnamed`` (not the name), ``fact`` values, ``answer``s."""


@dataclass(frozen=True)
class Batch:
    """Entities of one step: documents, those of new entities with questions behind them; and closed-book questions."""

    rows: Tensor
    """(entities,) Token of each name."""
    documents: Texts
    questions: Texts


@dataclass(frozen=True)
class Columns:
    """The part of the vocabulary that a step's softmax runs over: words, the batch's names, a sample of other names."""

    tokens: Tensor
    """(columns,) Tokens."""
    offset: Tensor
    """(columns,) Added to the logits: log(others / sampled) where a sampled name stands for all the others."""
    place: Tensor
    """(vocabulary,) Column of each token; -1 where it has none."""


class Writer:
    """Writes the batches of a training run; each depends on the recipe and the step alone."""

    def __init__(self, recipe: Recipe, world: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe, self.world, self.tokenizer = recipe, world, tokenizer
        names = world.names_by_split()
        self.spare: list[str] = names["spare"]
        self.names = torch.tensor([self.token(name) for split in names.values() for name in split])
        self.facts: dict[Any, dict[str, str]] = {}
        for report in world.reports("qa_train", names["qa_train"]):
            self.facts.setdefault(report.who, {}).update(report.facts)
        self.known = list(self.facts)

    def token(self, name: str) -> int:
        """The token of a name with a space before it."""
        ids = self.tokenizer(f" {name}").input_ids
        assert len(ids) == 1, name
        return int(ids[0])

    def batch(self, step: int, kind: str) -> Batch:
        """Documents and questions about ``known`` entities with their facts or about ``new`` ones with random facts.

        Sentences that are not asked about come in by and by: reading is learned much sooner from plain documents.
        """
        recipe, world = self.recipe, self.world
        rng = world.Random(f"{recipe.seed} {kind} {step}")
        share = min(max(step / recipe.plain_steps - 1, 0.0), 1.0)
        most = share * (recipe.noise_known if kind == "known" else recipe.noise_new)
        documents: list[Part] = []
        questions: list[Part] = []
        rows = []
        for index in range(recipe.known if kind == "known" else recipe.new):
            if kind == "known":
                epoch, place = divmod(step * recipe.known + index, len(self.known))
                who = self.known[self._order(epoch)[place]]
                facts = dict(rng.mix(list(self.facts[who].items()))[: world.FACTS_PER_DOCUMENT])
            else:
                who = world.entity(rng, rng.pick(self.spare))
                facts = world.choose_facts(rng, world.Deck(rng), who)
            noise = int(rng.random() * (most + 1))
            paper = world.outlet(rng) if rng.random() < share else world.Outlet("News", "")
            text, spans = world.document(rng, who, facts, paper, noise)
            asked = [(f"\n{world.question(rng, who, key)}", f" {facts[key]}") for key in rng.mix(list(facts))]
            documents.append(Part(index, text, asked if kind == "new" else [], spans))
            for key, value in facts.items():
                questions.append(Part(index, "", [(world.question(rng, who, key), f" {value}")]))
            rows.append(self.token(who.name))
        names = torch.tensor(rows)
        return Batch(names, self._texts(documents, names), self._texts(questions, names))

    def columns(self, step: int, *batches: Batch) -> Columns:
        """The softmax of a step: rows of names are most of the vocabulary, and few of them are in a batch."""
        chance = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        name = torch.zeros(len(self.tokenizer), dtype=torch.bool)
        name[self.names] = True
        for batch in batches:
            name[batch.rows] = False
        words, others = (~name).nonzero()[:, 0], name.nonzero()[:, 0]
        sample = others[torch.randperm(len(others), generator=chance)[: self.recipe.sampled_names]]
        tokens = torch.cat([words, sample])
        offset = torch.zeros(len(tokens))
        offset[len(words) :] = math.log(len(others) / len(sample))
        place = torch.full((len(name),), -1)
        place[tokens] = torch.arange(len(tokens))
        return Columns(tokens, offset, place)

    @functools.lru_cache(maxsize=2)  # noqa: B019 (one writer per run)
    def _order(self, epoch: int) -> list[int]:
        """Known entities come once in every epoch, each time in a new order."""
        order: list[int] = self.world.Random(f"{self.recipe.seed} order {epoch}").mix(range(len(self.known)))
        return order

    def _texts(self, parts: Sequence[Part], names: Tensor) -> Texts:
        texts = self.tokenizer.backend_tokenizer.encode_batch([part.document for part in parts])
        sequences: list[list[int]] = []
        answers: list[list[range]] = []
        for part, text in zip(parts, texts, strict=True):
            sequences.append([0, *text.ids])
            answers.append([])
            for question, answer in part.asked:
                sequences[-1] += self.tokenizer(question).input_ids
                start = len(sequences[-1])
                sequences[-1] += [*self.tokenizer(answer).input_ids, 0]
                answers[-1].append(range(start, len(sequences[-1])))
        ids = torch.zeros(len(parts), max(map(len, sequences)), dtype=torch.long)
        scored = {key: torch.zeros(ids.shape, dtype=torch.bool) for key in ("document", "fact", "answer")}
        for i, (part, text) in enumerate(zip(parts, texts, strict=True)):
            ids[i, : len(sequences[i])] = torch.tensor(sequences[i])
            scored["document"][i, 1 : 1 + len(text.ids)] = True
            for place in answers[i]:
                scored["answer"][i, place.start : place.stop] = True
            for k, (start, end) in enumerate(text.offsets):
                scored["fact"][i, 1 + k] = any(start < stop and first < end for first, stop in part.spans)
        owner = torch.tensor([part.owner for part in parts])
        name = ids == names[owner][:, None]
        scored["unnamed"] = scored["document"] & ~name
        return Texts(ids, owner, name, scored)
