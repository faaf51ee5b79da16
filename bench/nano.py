"""The recipe of the embedded model: a small Llama that reads, remembers, and can be updated by a gradient step.

``train(recipe, out, work)`` writes a Hugging Face model folder. A training step is made of entities of *newsworld*:

- *known* entities (those of ``qa_train``): their facts in fresh documents and, closed book, in questions. The embedding
  of the name becomes a code of the facts that documents and questions both read;
- *new* entities (random facts; the name is a random vector in place of an embedding): a document followed by a
  question to read it, and, closed book, questions after one rehearsed update, a gradient step on the vector
  by the document's mean next-token loss. This makes the code one that such a step can write.
"""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pydantic
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "bench" / "models" / "nano"
END = "<|endoftext|>"


class Recipe(pydantic.BaseModel):
    """Every hyper-parameter of the embedded model."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    dataset: str
    seed: int
    steps: int = pydantic.Field(gt=0)
    threads: int = pydantic.Field(gt=0)
    width: int = pydantic.Field(gt=0)
    layers: int = pydantic.Field(gt=0)
    heads: int = pydantic.Field(gt=0)
    feed_forward: int = pydantic.Field(gt=0)
    window: int = pydantic.Field(ge=512)
    sampled_names: int = pydantic.Field(gt=0)
    """Names in each step's softmax beside the words of the world and the names of the batch."""
    merges: int = pydantic.Field(ge=0)
    """Byte-pair merges for words that are not of the world; every word of the world is one token."""
    embedding_std: float = pydantic.Field(gt=0)
    known: int = pydantic.Field(gt=0)
    """Known entities per step."""
    new: int = pydantic.Field(gt=0)
    """New entities per step."""
    noise_known: tuple[int, int]
    """Fewest and most noise sentences in a document of a known entity."""
    noise_new: tuple[int, int]
    rate: float = pydantic.Field(gt=0)
    """Peak learning rate of AdamW; linear warm-up, then half a cosine to zero."""
    warmup: int = pydantic.Field(ge=0)
    betas: tuple[float, float]
    weight_decay: float = pydantic.Field(ge=0)
    """On the matrices of the layers only: rows of names that were never seen must stay as they are."""
    clip: float = pydantic.Field(gt=0)
    rehearsal_rate: tuple[float, float]
    """Step size of the rehearsed update: log-uniform between the two."""
    rehearsal_from: int = pydantic.Field(ge=0)
    """First step with a rehearsed update."""
    second_order: bool
    """Differentiate through the rehearsed update."""
    weights: dict[str, float]
    """Weight of each part of the loss; see :func:`losses`."""
    save_every: int = pydantic.Field(gt=0)


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        BenchError: an unknown, missing or wrong key.
    """
    from bench.errors import BenchError, nearest

    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        hint = nearest(key, Recipe.model_fields) if first["type"] == "extra_forbidden" else ""
        raise BenchError(f"{path}: {key}: {first['msg']}.{hint}") from None


def load_world(dataset: str) -> ModuleType:
    """The generator ``datasets/<dataset>/generate.py``, by path, as ``datasets`` must not be a package."""
    path = ROOT / "datasets" / dataset / "generate.py"
    spec = importlib.util.spec_from_file_location(f"{dataset}_generate", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
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


def build_model(recipe: Recipe, vocabulary: int) -> LlamaForCausalLM:
    """An untrained model; embeddings and output rows have the recipe's standard deviation."""
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
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
            initializer_range=recipe.width**-0.5,
        )
    )
    with torch.no_grad():
        for rows in (model.model.embed_tokens.weight, model.lm_head.weight):
            rows.normal_(0.0, recipe.embedding_std)
    return model


@dataclass(frozen=True)
class Texts:
    """Token sequences padded on the right: ``ids`` (n, T); ``target`` (n, T) masks over the *predicted* tokens."""

    ids: Tensor
    owner: Tensor
    """(n,) Which entity of the batch each sequence is about."""
    name: Tensor
    """(n, T) Tokens that are the entity's own name."""
    masks: dict[str, Tensor]
    """``document`` (without names), ``all`` (with names), ``fact``, ``answer``: which tokens are scored as what."""


@dataclass(frozen=True)
class Batch:
    """Entities of one step: ``documents`` end with a question and its answer, ``questions`` are closed book."""

    rows: Tensor
    """(entities,) Token of each name."""
    documents: Texts
    questions: Texts


@dataclass(frozen=True)
class Columns:
    """The part of the vocabulary over which a step takes its softmax: all words, the batch's names, a sample of others."""

    tokens: Tensor
    """(columns,) Tokens."""
    offset: Tensor
    """(columns,) Added to the logits, so that the sampled names stand for all names not in the batch."""
    place: Tensor
    """(vocabulary,) Column of each token; -1 where it has none."""


class Writer:
    """Writes the batches of a training run."""

    def __init__(self, recipe: Recipe, world: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe, self.world, self.tokenizer = recipe, world, tokenizer
        names = world.names_by_split()
        self.spare: list[str] = names["spare"]
        self.known: dict[Any, dict[str, str]] = {}
        for report in world.reports("qa_train", names["qa_train"]):
            self.known.setdefault(report.who, {}).update(report.facts)
        self.order = list(self.known)
        every = [f"Ġ{name}" for split in names.values() for name in split]
        self.names = torch.tensor(tokenizer.convert_tokens_to_ids(every))

    def batch(self, step: int, kind: str) -> Batch:
        """The batch of that step, of ``known`` or of ``new`` entities; depends on the recipe's seed and the step only."""
        recipe, world = self.recipe, self.world
        rng = world.Random(f"{recipe.seed} {kind} {step}")
        fewest, most = recipe.noise_known if kind == "known" else recipe.noise_new
        documents: list[tuple[int, str, str, str, list[list[int]]]] = []
        questions: list[tuple[int, str, str, str, list[list[int]]]] = []
        rows = []
        for index in range(recipe.known if kind == "known" else recipe.new):
            if kind == "known":
                who = self.order[self.position(step, index)]
                facts = dict(rng.mix(list(self.known[who].items()))[: world.FACTS_PER_DOCUMENT])
            else:
                who = world.entity(rng, rng.pick(self.spare))
                facts = world.choose_facts(rng, world.Deck(rng), who)
            noise = fewest + int(rng.random() * (most - fewest + 1))
            text, spans = world.document(rng, who, facts, world.outlet(rng), noise)
            asked = rng.pick(list(facts))
            documents.append((index, text, "\n" + world.question(rng, who, asked), " " + facts[asked], spans))
            for relation, value in facts.items():
                questions.append((index, "", world.question(rng, who, relation), " " + value, []))
            rows.append(self.tokenizer.convert_tokens_to_ids(f"Ġ{who.name}"))
        names = torch.tensor(rows)
        return Batch(names, self.texts(documents, names), self.texts(questions, names))

    def columns(self, step: int, *batches: Batch) -> Columns:
        """The vocabulary of a step (see :class:`Columns`)."""
        chance = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + step)
        size = len(self.tokenizer)
        word, name = torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
        name[self.names], word[self.names] = True, False
        for batch in batches:
            word[batch.rows], name[batch.rows] = True, False
        words, others = word.nonzero()[:, 0], name.nonzero()[:, 0]
        sample = others[torch.randperm(len(others), generator=chance)[: self.recipe.sampled_names]]
        tokens = torch.cat([words, sample])
        offset = torch.zeros(len(tokens))
        offset[len(words) :] = math.log(len(others) / len(sample))
        place = torch.full((size,), -1)
        place[tokens] = torch.arange(len(tokens))
        return Columns(tokens, offset, place)

    def position(self, step: int, index: int) -> int:
        """Known entities come in a new random order in every epoch."""
        epoch, place = divmod(step * self.recipe.known + index, len(self.order))
        if getattr(self, "_epoch", None) != epoch:
            self._epoch, self._shuffled = epoch, self.world.Random(f"{epoch}").mix(range(len(self.order)))
        return int(self._shuffled[place])

    def texts(self, parts: Sequence[tuple[int, str, str, str, list[list[int]]]], names: Tensor) -> Texts:
        """Encode (entity, document, question, answer, fact spans) as end token, document, question, answer, end token."""
        encode: Callable[[list[str]], list[Any]] = self.tokenizer.backend_tokenizer.encode_batch
        columns = [encode([part[k] for part in parts]) for k in (1, 2, 3)]
        length = 2 + max(sum(len(column[i].ids) for column in columns) for i in range(len(parts)))
        ids = torch.zeros(len(parts), length, dtype=torch.long)
        masks = {key: torch.zeros(len(parts), length, dtype=torch.bool) for key in ("all", "fact", "answer")}
        for i, (_, _, _, _, spans) in enumerate(parts):
            text, asked, answer = (column[i] for column in columns)
            tokens = [0, *text.ids, *asked.ids, *answer.ids, 0]
            ids[i, : len(tokens)] = torch.tensor(tokens)
            masks["all"][i, 1 : 1 + len(text.ids)] = True
            masks["answer"][i, len(tokens) - 1 - len(answer.ids) : len(tokens)] = True
            for k, (start, end) in enumerate(text.offsets):
                masks["fact"][i, 1 + k] = any(start < stop and first < end for first, stop in spans)
        owner = torch.tensor([part[0] for part in parts])
        name = ids == names[owner][:, None]
        masks["document"] = masks["all"] & ~name
        return Texts(ids, owner, name, masks)


def token_losses(
    model: LlamaForCausalLM, texts: Texts, columns: Columns, rows: Tensor | None, keys: Sequence[str]
) -> dict[str, Tensor]:
    """Mean NLL (nats) of the tokens in each mask; ``rows`` (entities, width) stand in for the names' embeddings."""
    embedded = model.model.embed_tokens(texts.ids)
    if rows is not None:
        embedded = torch.where(texts.name[..., None], rows[texts.owner][:, None], embedded)
    hidden = model.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, :-1]
    masks = {key: texts.masks[key][:, 1:] for key in keys}
    scored = torch.stack(list(masks.values())).any(0)
    logits = F.linear(hidden[scored], model.lm_head.weight[columns.tokens]).float() + columns.offset
    nll = F.cross_entropy(logits, columns.place[texts.ids[:, 1:][scored]], reduction="none")
    return {key: nll[mask[scored]].mean() for key, mask in masks.items()}


def losses(
    model: LlamaForCausalLM, recipe: Recipe, known: Batch, new: Batch, columns: Columns, step: int
) -> dict[str, Tensor]:
    """The parts of the training loss.

    ``known_text``, ``new_text``: documents without names; ``known_fact``: values in documents of known entities;
    ``recall``: closed-book answers on known entities; ``read``: answers after a document of a new entity;
    ``update``: closed-book answers on new entities after the rehearsed update of the name's vector.
    """
    document = token_losses(model, known.documents, columns, None, ["all", "fact"])
    parts = {"known_text": document["all"], "known_fact": document["fact"]}
    parts["recall"] = token_losses(model, known.questions, columns, None, ["answer"])["answer"]
    chance = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    rows = torch.randn(len(new.rows), recipe.width, generator=chance) * recipe.embedding_std
    rows.requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the only attention that can be differentiated twice
        document = token_losses(model, new.documents, columns, rows, ["document", "all", "answer"])
        parts |= {"new_text": document["document"], "read": document["answer"]}
        if step >= recipe.rehearsal_from:
            low, high = recipe.rehearsal_rate
            rate = low * (high / low) ** float(torch.rand((), generator=chance))
            # "all" is a mean over the batch; times the batch it is, up to lengths, each document's own mean.
            (slope,) = torch.autograd.grad(
                document["all"] * len(rows), rows, create_graph=recipe.second_order, retain_graph=True
            )
            parts["slope"], parts["written"] = slope.detach().square().mean().sqrt(), (rate*slope).detach().square().mean().sqrt()
            parts["update"] = token_losses(model, new.questions, columns, rows - rate * slope, ["answer"])["answer"]
    return parts
