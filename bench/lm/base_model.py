"""The base model: loading, encoding, windows over long texts, exact log-probabilities, restoring of the weights."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from bench.data.documents import Document, Segment
from bench.data.prompt_format import PLAIN, PromptFormat
from bench.errors import BenchError
from bench.lm import checkpoint, placement, quantized
from bench.lm.mixing import MixNextToken, head_inputs, mixed
from bench.lm.precision import DTYPES, autocast, cast_matrices, in_float64, multiplies_bfloat16, wrap_forward
from bench.lm.probe import Abilities, key_value_shape, of_weights, probe
from bench.lm.prompt_frame import frame

BATCH_TOKENS = 1024
"""Most tokens, padding included, in a batch of texts in :meth:`BaseModel.total_nll`."""
FALLBACK_WINDOW = 1024
"""Window of models whose configuration has no maximum length (relative or no position encoding)."""
SOFTMAX_ROWS = 512
"""Positions whose log-probabilities over the vocabulary are computed at a time."""


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of a document.

    ``token_ids`` has shape (tokens,). ``context_ids``, shape (context,), precedes it: the begin-of-text token and, for
    a segment, the document's tokens before it. ``offsets`` are the (start, end) characters of each token.
    """

    document: Document
    token_ids: Tensor
    context_ids: Tensor
    offsets: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.token_ids)

    def followed_by(self, token: int) -> TokenBatch:
        """The batch with one more token, which has no characters."""
        ids, end = torch.cat([self.token_ids, self.token_ids.new_tensor([token])]), len(self.document.text)
        return replace(self, token_ids=ids, offsets=(*self.offsets, (end, end)))

    def per_token(self, values: Sequence[float]) -> Tensor:
        """Values of the characters pooled per token, shape (tokens,): the maximum, 0 for a token without characters."""
        largest = [max(values[start:end], default=0.0) for start, end in self.offsets]
        return torch.tensor(largest, dtype=torch.float32, device=self.token_ids.device)


class BaseModel:
    """A causal language model with its tokenizer, as methods (``self.lm``) and the harness use it.

    Every text is read after one begin-of-text token, so that every token of a document has a probability: the one that
    ``prompt`` states, or the tokenizer's (its end-of-text token if it has no other).

    The weights are in float32, and so are their gradients, unless they are quantized. If ``dtype`` is another, forward
    passes of ``model`` run under autocast: matrices are multiplied in that type, and activations, logits, keys and
    values may have it.

    ``window`` is the most tokens that are read at once, if the model could read more. ``stored`` are tensors by name
    that hold what the model's weights are now: those that do are not copied to be able to :meth:`restore` them.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        device: str = "cpu",
        dtype: str = "float32",
        prompt: PromptFormat = PLAIN,
        window: int | None = None,
        stored: Mapping[str, Tensor] | None = None,
    ) -> None:
        is_placed = quantized.is_quantized(model) or placement.is_placed(model)
        self.model: Any = (model if is_placed else model.to(device)).eval()
        self.dtype = DTYPES[dtype]
        placement.connect(self.model, device)
        quantized.multiply_dequantized(self.model)
        if self.dtype != torch.float32:
            in_bfloat16 = device == "cpu" and self.dtype == torch.bfloat16
            cast_matrices(self.model, round_only=in_bfloat16 and not multiplies_bfloat16())
            wrap_forward(self.model, self.autocast)
        self.tokenizer: Any = tokenizer
        self.device = placement.first_device(self.model, device)
        """Where tokens are read and probabilities are computed; the first of ``devices``."""
        self.devices = placement.devices(self.model) or [self.device]
        """Devices that hold weights: several for a base that is spread over them."""
        self.eos_id: int = tokenizer.eos_token_id
        self.prompt = frame(prompt, tokenizer)
        self.bos_id: int = self.prompt.begin
        self._mix: MixNextToken | None = None
        self._most_tokens = window
        self._tensors = dict(self._current_tensors())
        self._initial_values = {
            name: other
            if (other := (stored or {}).get(name)) is not None and same_bits(other, value)
            else value.detach().clone()
            for name, value in self.named_tensors()
        }

    @classmethod
    def load(
        cls,
        path: str,
        device: str = "cpu",
        dtype: str = "float32",
        abilities: Abilities | None = None,
        prompt: PromptFormat = PLAIN,
        window: int | None = None,
        offload: bool = False,
    ) -> BaseModel:
        """Load a Hugging Face causal language model from a local folder; its ``abilities`` are tried unless given.

        It is placed as :func:`placement.options` says.

        Raises:
            BenchError: what :func:`checkpoint.check`, :func:`checkpoint.check_loaded`, the placement or the probe
                refuses, or a prompt format that the tokenizer cannot write.
        """
        disable_progress_bar()
        set_verbosity_error()  # what it would warn of is refused
        checkpoint.check(Path(path), device)
        weights, is_quantized = checkpoint.weight_count(Path(path)), quantized.is_stored(Path(path))
        place = placement.options(weights, device, offload, is_quantized)
        try:
            model_and_info: Any = AutoModelForCausalLM.from_pretrained(
                path,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **place,
            )
            tokenizer = checkpoint.load_tokenizer(Path(path))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of any type: a configuration that does not fit, weights of other sizes
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise BenchError(f"The model in {path} could not be loaded: {reason} Save it again.") from None
        model, info = model_and_info
        checkpoint.check_loaded(Path(path), model, tokenizer, info)
        placement.check(model, device, offload)
        stored = checkpoint.mapped_tensors(Path(path)) if device == "cpu" else {}
        lm = cls(model, tokenizer, device, dtype, prompt, window, stored)
        checkpoint.check_embedded([*lm.prompt.head, *lm.prompt.tail, *lm.prompt.stops, lm.prompt.begin], model)
        # with the weights as they are loaded; those that were tried elsewhere know nothing of where they are
        vars(lm)["abilities"] = replace(abilities or lm.abilities, **of_weights(model))
        return lm

    def autocast(self) -> AbstractContextManager[Any]:
        """Context for using parts of ``model`` in the precision of the whole; no effect in float32."""
        return autocast(self.device, self.dtype)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Disable gradients for forward passes between which no weight changes: each weight is cast only once."""
        # autocast keeps the casts only of weights that require gradients
        flags = nullcontext() if self.dtype == torch.float32 else self._requires_grad(True)
        with flags, torch.no_grad(), self.autocast():
            yield

    @contextmanager
    def mixing(self, mix: MixNextToken | None) -> Iterator[None]:
        """Mix next-token distributions inside the block: in log-probabilities and in batches of prompts."""
        before, self._mix = self._mix, mix
        try:
            yield
        finally:
            self._mix = before

    @property
    def mixes(self) -> bool:
        """True inside :meth:`mixing` with a hook."""
        return self._mix is not None

    def read(self, keep: int | None = None, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V), and what the output layer read, (B, T or more, d), which is empty if nothing is mixed.

        With ``keep`` they are those of the last T = ``keep`` positions, and if the model's ``forward`` takes
        ``logits_to_keep``, no others are computed.
        """
        if keep and self._takes_logits_to_keep:
            inputs["logits_to_keep"] = keep
        seen = [torch.empty(0)]
        with nullcontext() if self._mix is None else head_inputs(self.model) as heads:
            logits: Tensor = self.model(**inputs).logits
        before = 0 if keep is None else logits.shape[1] - keep
        # a slice's gradient is a copy that is padded with zeros
        return logits[:, before:] if before else logits, (heads or seen)[-1].to(self.device)

    @cached_property
    def _takes_logits_to_keep(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.model.forward).parameters

    def mixed(self, logits: Tensor, hidden: Tensor, ids: Tensor) -> Tensor:
        """Logits (T, V) and hidden states after the last T of the ``ids``, mixed; the logits if nothing is mixed."""
        if self._mix is None:
            return logits
        return mixed(self._mix, logits, hidden[len(hidden) - len(logits) :], ids)

    @cached_property
    def abilities(self) -> Abilities:
        """Ways of reading in which the model computes the same: tried once, when it is loaded, in float32."""
        dtype, self.dtype = self.dtype, torch.float32
        try:
            return probe(self)
        finally:
            self.dtype = dtype

    @property
    def key_value_shape(self) -> tuple[int, int, int]:
        """(layers, key/value heads, head size) of the keys and of the values that the model computes.

        Raises:
            BenchError: the model has no keys and values, or not of one shape.
        """
        return key_value_shape(self)

    @cached_property
    def window(self) -> int:
        """Most tokens that are read at once, the begin-of-text token included."""
        most = checkpoint.positions(self.model) or FALLBACK_WINDOW
        return min(most, self._most_tokens or most)

    def encode(self, text: str) -> Tensor:
        """Token ids of ``text``, shape (tokens,), on the model's device. No special tokens are added.

        The name of a special token in the text is text like any other, not the token.
        """
        return torch.tensor(self._tokenize(text)[0], dtype=torch.long, device=self.device)

    def tokens(self, document: Document) -> TokenBatch:
        """The document's tokens with their context and character offsets."""
        context = [self.bos_id]
        if isinstance(document, Segment):
            ids, offsets = list(document.token_ids), list(document.offsets)
            context += document.context_ids
        else:
            ids, offsets = self._tokenize(document.text)
        token_ids = torch.tensor(ids, dtype=torch.long, device=self.device)
        return TokenBatch(document, token_ids, torch.tensor(context, device=self.device), tuple(offsets))

    def _tokenize(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text and the (start, end) characters of each."""
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if self._control_ids.isdisjoint(ids):
            return ids, offsets
        # vocabularies of words or of pieces (Unigram) hold the names of special tokens too: read a name in two parts
        parts: list[tuple[int, tuple[int, int]]] = []
        for token, (start, end) in zip(ids, offsets, strict=True):
            if token not in self._control_ids or end - start < 2:
                parts.append((token, (start, end)))
                continue
            for first, last in ((start, start + 1), (start + 1, end)):
                for part, (a, b) in zip(*self._tokenize(text[first:last]), strict=True):
                    parts.append((part, (first + a, first + b)))
        return [token for token, _ in parts], [span for _, span in parts]

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids) - {self.tokenizer.unk_token_id}

    def segments(self, document: Document, size: int) -> list[Segment]:
        """Cut a document into consecutive segments of ``size`` tokens (the last may be shorter); [] without tokens."""
        ids, offsets = self._tokenize(document.text)
        starts = [0, *(offsets[i][0] for i in range(size, len(ids), size)), len(document.text)]
        segments = []
        for k, first in enumerate(range(0, len(ids), size)):
            start, end = starts[k], starts[k + 1]
            segments.append(
                Segment(
                    id=document.id,
                    text=document.text[start:end],
                    title=document.title,
                    timestamp=document.timestamp,
                    token_ids=tuple(ids[first : first + size]),
                    offsets=tuple((max(0, a - start), b - start) for a, b in offsets[first : first + size]),
                    context_ids=tuple(ids[max(0, first - self.window) : first]),
                    last=first + size >= len(ids),
                )
            )
        return segments

    def windows(self, tokens: int, context: int) -> list[tuple[int, int, int]]:
        """Windows that read ``tokens`` tokens after ``context`` tokens: (first read, first predicted, end) of each.

        Positions count from the start of the context. Every token is predicted exactly once. If everything fits into
        the model's window, there is one window. Otherwise each window after the first reads half a window of context
        and then predicts as many tokens, so that no token is predicted from less than half a window of context.
        """
        end = context + tokens
        if tokens == 0:
            return []
        if end - 1 <= self.window:  # the last token is predicted, not read
            return [(0, context, end)]
        half = max(1, self.window // 2)
        spans = []
        first = context
        while first < end:
            start = max(0, first - half)
            stop = min(end, start + self.window + 1)
            spans.append((start, first, stop))
            first = stop
        return spans

    def window_log_probs(self, token_ids: Tensor, context_ids: Tensor) -> Iterator[Tensor]:
        """Log-probabilities (full softmax, float32) of the tokens given their context, one window at a time.

        Concatenated they have shape (tokens,). They are differentiable if gradients are enabled. Each window has a
        separate graph, so that a long document can be back-propagated window by window.
        """
        ids = torch.cat([context_ids, token_ids])
        for start, first, stop in self.windows(len(token_ids), len(context_ids)):
            logits, hidden = self.read(stop - first, input_ids=ids[None, start : stop - 1], use_cache=False)
            predicted = logits.flatten(0, 1)
            if self.mixes:
                predicted = self.mixed(predicted.float(), hidden[0], ids[start : stop - 1])
            yield _log_probs(predicted, ids[first:stop])

    def log_probs(self, ids: Tensor, context: Tensor | None = None) -> Tensor:
        """Exact log-probabilities (nats) of ``ids``, shape (tokens,), after ``context`` (default: begin of text)."""
        context_ids = torch.tensor([self.bos_id], device=self.device) if context is None else context
        windows = list(self.window_log_probs(ids, context_ids))
        return torch.cat(windows) if windows else torch.zeros(0, device=self.device)

    @torch.no_grad()
    def hidden(self, document: Document) -> Tensor:
        """What the output layer reads where it predicts each of the document's tokens: (tokens, hidden size), float32.

        Tokens are read in the same windows as by :meth:`window_log_probs`.
        """
        batch = self.tokens(document)
        ids = torch.cat([batch.context_ids, batch.token_ids])
        parts = [torch.zeros(0, self.model.get_output_embeddings().weight.shape[-1], device=self.device)]
        for start, first, stop in self.windows(len(batch), len(batch.context_ids)):
            with head_inputs(self.model, alone=True) as seen:
                self.model(input_ids=ids[None, start : stop - 1], use_cache=False)
            parts.append(seen[-1][0, first - stop :].to(self.device).float())
        return torch.cat(parts)

    def generate(self, texts: Sequence[str], max_new_tokens: int, temperature: float = 0.0) -> list[str]:
        """Let the model continue each text, for a method's own use (paraphrases, self-written questions).

        Greedy, or sampled at a ``temperature`` above 0 from torch's generator, which the harness seeds before each
        hook. Each text is read alone, after the begin-of-text token, and cut at its beginning if it does not fit. The
        continuations end before the end-of-text token.
        """
        written = []
        begin, ends = torch.tensor([self.bos_id], device=self.device), self.stop_ids - self.newline_ids
        choice = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        # settings that a base brings with it would change what is most likely
        plain = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "min_p": None, "typical_p": 1.0}
        with self.inference():
            for text in texts:
                ids = self.encode(text)
                ids = torch.cat([begin, ids[max(0, len(ids) + 1 + max_new_tokens - self.window) :]])
                output = self.model.generate(
                    ids[None],
                    attention_mask=torch.ones_like(ids[None]),
                    max_new_tokens=max_new_tokens,
                    pad_token_id=self.eos_id,
                    eos_token_id=sorted(ends),
                    use_cache=self.abilities.cache,
                    **({"do_sample": False} | plain | choice),
                )
                own = itertools.takewhile(lambda token: token not in ends, output[0, len(ids) :].tolist())
                written.append(self.tokenizer.decode(list(own), skip_special_tokens=True))
        return written

    def total_nll(self, batches: Sequence[TokenBatch]) -> float:
        """Sum of -log p (nats) over all tokens of several texts, read in batches of similar length.

        Long texts are cut into :meth:`windows`.
        """
        spans = [
            (ids[start : stop - 1], ids[first:stop])
            for batch in batches
            for ids in [torch.cat([batch.context_ids, batch.token_ids])]
            for start, first, stop in self.windows(len(batch), len(batch.context_ids))
        ]
        spans.sort(key=lambda span: -len(span[0]))
        total = 0.0
        with self.inference():
            while spans:
                rows = max(1, BATCH_TOKENS // len(spans[0][0]))
                inputs, targets = zip(*spans[:rows], strict=True)
                del spans[:rows]
                # padding is on the right, where a causal model does not attend to it
                ids = pad_sequence(list(inputs), batch_first=True, padding_value=self.eos_id)
                logits, hidden = self.read(input_ids=ids, use_cache=False)
                sums = []
                for i, (row, source, target) in enumerate(zip(logits, inputs, targets, strict=True)):
                    predicted = row[len(source) - len(target) : len(source)]
                    if self.mixes:
                        predicted = self.mixed(predicted.float(), hidden[i, : len(source)], source)
                    sums.append(in_float64(_log_probs(predicted, target)).sum())
                for value in torch.stack(sums).tolist():  # one read of the device for all rows
                    total -= value
        return total

    def loss(self, document: Document, weights: Tensor | None = None) -> Tensor:
        """Mean over the document's tokens of weight times -log p (nats): a differentiable scalar, 0 without tokens.

        ``weights`` has shape (tokens,). By default every weight is 1.
        """
        batch = self.tokens(document)
        if len(batch) == 0:
            return torch.zeros((), device=self.device, requires_grad=torch.is_grad_enabled())
        nll = -self.log_probs(batch.token_ids, batch.context_ids)
        return (nll if weights is None else nll * weights).sum() / len(batch)

    def embeddings(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, shape ids.shape + (hidden size,)."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and persistent buffer of the checkpoint by name; tied ones once.

        Names stay the same while an adapter wraps the model's modules. Tensors of adapters are not included.
        """
        yield from self._tensors.items()

    def _current_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters and persistent buffers that the model has now, without those that are offloaded."""
        yield from ((name, value) for name, value in self.model.named_parameters() if not value.is_meta)
        persistent = self.model.state_dict(keep_vars=True)
        yield from ((name, value) for name, value in self.model.named_buffers() if name in persistent)

    def restore(self) -> None:
        """Restore the model as it was loaded: weights (bit for bit), evaluation mode, all gradients enabled and empty.

        Raises:
            RuntimeError: a method has changed the model's structure and not undone it.
        """
        current = dict(self._current_tensors())
        if current.keys() != self._tensors.keys() or any(current[name] is not self._tensors[name] for name in current):
            raise RuntimeError(
                "The model's structure was changed (is an adapter still attached?). The method's reset must undo this."
            )
        with torch.no_grad():
            for name, value in self.named_tensors():
                initial = self._initial_values[name]
                if not same_bits(value, initial):  # memory that is not written to is shared with other processes
                    value.copy_(initial)
        self.model.eval()
        self._require_gradients(True)
        self.model.zero_grad(set_to_none=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Disable gradients for the weights inside the block; activations still have them."""
        with self._requires_grad(False):
            yield

    @contextmanager
    def _requires_grad(self, flag: bool) -> Iterator[None]:
        before = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        self._require_gradients(flag)
        try:
            yield
        finally:
            for parameter, value in before.items():
                parameter.requires_grad_(value)

    def _require_gradients(self, flag: bool) -> None:
        for parameter in self.model.parameters():
            if parameter.is_floating_point() and not parameter.is_meta:  # what is quantized or offloaded has none
                parameter.requires_grad_(flag)

    def pristine(self, name: str) -> Tensor:
        """Value of a parameter or persistent buffer in the checkpoint. It is not a copy: do not change it."""
        return self._initial_values[name]

    def changed_bytes(self) -> int:
        """Bytes of the model's tensors that differ from the checkpoint."""
        return sum(
            value.numel() * value.element_size()
            for name, value in self.named_tensors()
            if not torch.equal(value, self._initial_values[name])
        )

    def weights_hash(self) -> str:
        """SHA-256 (hexadecimal) over the names and bytes of all tensors."""
        digest = hashlib.sha256()
        for name, value in self.named_tensors():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids at which an answer stops: end of text, the ends that ``generate`` of the model knows, and newlines.

        Further ones are the begin token that the prompt format states and, in a chat, the end of the assistant's turn.
        """
        ends = self.model.generation_config.eos_token_id
        named = set(ends if isinstance(ends, list) else [ends]) - {None}
        return self.newline_ids | {self.eos_id} | named | self.prompt.stops

    @cached_property
    def newline_ids(self) -> frozenset[int]:
        """Ids of the tokens whose text contains a newline."""
        texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
        return frozenset(i for i, text in enumerate(texts) if "\n" in text)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """True if two tensors on one device have the same type, shape and bits."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(one.element_size(), torch.int64)
    return torch.equal(one.detach().view(integers), other.detach().view(integers))


def _log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities, float32, of these ids (T,) by logits (T, V) of any type, a part of the rows at a time."""
    parts = zip(logits.split(SOFTMAX_ROWS), ids.split(SOFTMAX_ROWS), strict=True)
    losses = [functional.cross_entropy(part.float(), targets, reduction="none") for part, targets in parts]
    return -(losses[0] if len(losses) == 1 else torch.cat(losses))


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of generated tokens up to the first newline, stripped of outer whitespace."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.split("\n", 1)[0].strip()
