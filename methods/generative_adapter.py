from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers.pytorch_utils import Conv1D

from bench import Document, Episode, MethodConfig
from bench.adapters import Adapter, Targets, target_modules
from bench.base_model import BaseModel
from bench.errors import BenchError
from bench.meta import MetaTrained, Training
from bench.parameters import blocks
from bench.seeds import seed_for

Encoding = Literal["sequential", "parallel", "concat"]
Read = tuple[Tensor, Tensor, Tensor]
"""A block's input, the adapted layer's own input, and the base's last hidden state, (rows, length, ...) each."""


class GeneratorTraining(Training):
    """The generator's shape, and how it is trained (Chen et al. 2024); the defaults are for 4,096 hidden units."""

    steps: int = pydantic.Field(default=14332, ge=0, description="outer optimizer steps")
    episodes_per_step: int = pydantic.Field(default=64, ge=1, description="documents, with their questions, in each")
    learning_rate: float = pydantic.Field(default=1e-4, gt=0, description="of the outer optimizer, Adam")
    warmup: int = pydantic.Field(default=100, ge=0, description="outer steps in which the rate rises to learning_rate")
    target: Literal["attention_output", "mlp_output", "both"] = pydantic.Field(
        default="attention_output", description="adapted layers of each block: the last of its attention or of its MLP"
    )
    blocks: tuple[pydantic.NonNegativeInt, ...] | None = pydantic.Field(
        default=None, min_length=1, description="blocks to adapt, from 0; null: all"
    )
    inner: int | None = pydantic.Field(default=None, ge=1, description="d_r, width of the state; null: hidden size / 4")
    rank: int | None = pydantic.Field(default=None, ge=1, description="rank that svd keeps of the state; null: d_r / 8")
    scale: float = pydantic.Field(default=1 / 16, gt=0, description="factor of the update (alpha / d_r)")
    normalize: Literal["svd", "frobenius", "none"] = pydantic.Field(
        default="svd",
        description="the state before it becomes an update: its largest singular values set to 1 and the others to 0, "
        "scaled to the same Frobenius norm, or as it is",
    )
    decomposition: Literal["exact", "randomized"] = pydantic.Field(
        default="exact", description="of normalize=svd: full, or a sketch of the rank refined by one power iteration"
    )
    drop_near_equal: bool = pydantic.Field(
        default=False, description="no update in training where two singular values are nearly equal"
    )
    keys: Literal["block_input", "module_input"] = pydantic.Field(
        default="block_input",
        description="what the keys are made of: the residual stream before the block, as are the values, or what the "
        "adapted layer itself is given, as are the queries",
    )
    values: Literal["token", "next_token"] = pydantic.Field(
        default="token", description="whose value a token's key is bound to: its own, or the next token's"
    )
    gate: bool = pydantic.Field(
        default=False, description="weigh what is written of a token by a sigmoid of the base's last hidden state there"
    )
    encoding: Encoding = pydantic.Field(
        default="sequential",
        description="chunks of the context are read by the base with the update from all before, each by the bare base "
        "(parallel), or by the bare base in chunks of a whole window (concat)",
    )
    chunk: int = pydantic.Field(default=1024, ge=1, description="most tokens that are read at a time")
    first_documents: int = pydantic.Field(default=8, ge=1, description="documents in a training state, at the start")
    documents: int = pydantic.Field(default=8, ge=1, description="documents in a training state, in the end")
    grown: float = pydantic.Field(default=0.5, gt=0, le=1, description="share of the steps after which it is the end's")
    questions: int = pydantic.Field(default=256, ge=1, description="most questions asked in a step")
    qa_from: float = pydantic.Field(
        default=0.8, ge=0, le=1, description="share of the steps before which it learns from text alone, then questions"
    )
    align: float = pydantic.Field(
        default=0, ge=0, description="weight, beside the answers' loss, of each question finding its document's answers"
    )
    aligned_first: float = pydantic.Field(
        default=0, ge=0, le=1, description="share of the steps, the first ones, that do nothing but that"
    )
    remember: bool = pydantic.Field(
        default=False, description="keep what the bare base makes of each training document in memory"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.first_documents > self.documents:
            raise ValueError("first_documents must be at most documents")
        if self.remember and self.encoding == "sequential":
            raise ValueError("remember needs encoding=parallel or concat: else the base reads differently in each step")
        if self.gate and self.encoding == "sequential":
            raise ValueError(
                "gate needs encoding=parallel or concat: else the last hidden state comes after the update"
            )
        return self

    def documents_at(self, progress: float) -> int:
        """Documents in a state when a share of the steps is done: grows by the same factor from step to step.

        It begins to grow when the first stage, that of the alignment alone, has ended.
        """
        growth = self.documents / self.first_documents
        since, whole = max(0.0, progress - self.aligned_first), max(1e-9, self.grown - self.aligned_first)
        return int(self.first_documents * growth ** min(1.0, since / whole) + 0.5)


class PartialIsometry(torch.autograd.Function):
    """The matrix whose ``rank`` largest singular values are set to 1 and all others to 0: U_r W_r^T of S = U s W^T.

    The gradient is that of a spectral function of the singular values: with P = U^T G W, f = 1 for those kept, and
    divided differences d, it is U (d- sym P + d+ skew P) W^T where d-/+ _ij = (f_i -/+ f_j) / (s_i -/+ s_j), d- being 0
    where f_i = f_j. So singular values that are near each other do no harm unless the cut is between them. If it is
    ``randomized``, the matrix comes from a sketch refined by one power iteration, and the gradient is of the exact one.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, rank: int, randomized: bool) -> Tensor:
        ctx.save_for_backward(state)
        ctx.rank = rank
        if randomized:
            left, values, right = torch.svd_lowrank(state, q=rank, niter=1)
            right = right.mT
        else:
            left, values, right = ctx.decomposed = torch.linalg.svd(state)
        isometry: Tensor = (left * kept_values(values, rank)[..., None, :]) @ right
        return isometry

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        left, values, right = getattr(ctx, "decomposed", None) or torch.linalg.svd(*ctx.saved_tensors)
        kept = kept_values(values, ctx.rank)
        inner = left.mT @ gradients[0] @ right.mT
        tiny = torch.finfo(values.dtype).eps * values[..., :1, None].clamp_min(torch.finfo(values.dtype).tiny)
        gap, total = values[..., :, None] - values[..., None, :], values[..., :, None] + values[..., None, :]
        jump, both = kept[..., :, None] - kept[..., None, :], kept[..., :, None] + kept[..., None, :]
        minus = torch.where((jump == 0) | (gap.abs() <= tiny), 0.0, jump / gap)
        plus = both / total.clamp_min(tiny)
        through = (minus * (inner + inner.mT) + plus * (inner - inner.mT)) / 2
        return left @ through @ right, None, None


def kept_values(values: Tensor, rank: int) -> Tensor:
    """1 for the ``rank`` largest singular values as far as they are not numerically zero, else 0."""
    negligible = values[..., :1] * values.shape[-1] * torch.finfo(values.dtype).eps
    return ((torch.arange(values.shape[-1], device=values.device) < rank) & (values > negligible)).to(values.dtype)


class Written(NamedTuple):
    """What chunks add to a layer's state, (rows, d_r, d_r), and the keys of their tokens, (rows, length, d_r)."""

    state: Tensor
    keys: Tensor


class _Asked(NamedTuple):
    """A question as it is trained on: its group and document, by number, and its tokens and its answer's."""

    group: int
    document: int
    prompt: Tensor
    answer: Tensor


class _Piece(NamedTuple):
    """A chunk of a document."""

    document: int
    tokens: Tensor


class Generator(nn.Module):
    """What one adapted layer writes of a context into its state S, and the update of its weights that S stands for.

    With H the hidden states behind an RMSNorm: S = sum over tokens of (K h)^T (V h), and the update is
    scale O N^T Q with N the normalised S (Chen et al. 2024, equations 3 and 7 to 9; the norm is in their code alone).
    """

    def __init__(self, hidden: int, inputs: int, outputs: int, plan: GeneratorTraining) -> None:
        super().__init__()
        self.plan = plan
        inner = plan.inner or max(1, hidden // 4)
        self.rank: int = min(inner, plan.rank or max(1, inner // 8))
        keyed = inputs if plan.keys == "module_input" else hidden
        self.gain = nn.Parameter(torch.ones(hidden))
        self.key_gain = nn.Parameter(torch.ones(inputs)) if plan.keys == "module_input" else None
        self.K = nn.Parameter(torch.empty(inner, keyed))
        self.V = nn.Parameter(torch.empty(inner, hidden))
        self.Q = nn.Parameter(torch.empty(inner, inputs))
        self.O = nn.Parameter(torch.zeros(outputs, inner))  # no update at the start
        self.gate = nn.Linear(hidden, 1) if plan.gate else None
        for matrix in (self.K, self.V, self.Q):
            nn.init.kaiming_normal_(matrix, a=5**0.5)
        if plan.keys == "module_input":  # queries meet the keys of what they are themselves
            self.Q.data.copy_(self.K.data)

    def associate(
        self, hidden: Tensor, inputs: Tensor, mask: Tensor, last: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values, (rows, length, d_r), of the same as in :meth:`write`; both are 0 for padding."""
        hidden, mask = hidden.to(self.gain.dtype), mask.to(self.gain.dtype)[..., None]
        normed = functional.rms_norm(hidden, hidden.shape[-1:], self.gain, 1e-6)
        keyed = normed
        if self.key_gain is not None:
            keyed = functional.rms_norm(inputs.to(self.gain.dtype), inputs.shape[-1:], self.key_gain, 1e-6)
        keys, values = functional.linear(keyed, self.K) * mask, functional.linear(normed, self.V) * mask
        if self.gate is not None and last is not None:
            ending = functional.rms_norm(last.to(self.gain.dtype), last.shape[-1:], eps=1e-6)
            keys = keys * torch.sigmoid(self.gate(ending))
        if self.plan.values == "next_token":
            keys, values = keys[:, :-1] * mask[:, 1:], values[:, 1:]
        return keys, values

    def write(self, hidden: Tensor, inputs: Tensor, mask: Tensor, last: Tensor | None = None) -> Written:
        """What each chunk leaves behind: of the block's input (rows, length, hidden size), the layer's own input, a
        0/1 mask and, for the gate, the base's last hidden state."""
        keys, values = self.associate(hidden, inputs, mask, last)
        return Written(keys.mT @ values, keys)

    def normalize(self, state: Tensor) -> Tensor:
        """N of states (..., d_r, d_r); of Frobenius norm sqrt(rank) but with ``none``, and 0 of 0."""
        if self.plan.normalize == "none":
            return state
        if self.plan.normalize == "frobenius":
            norm = torch.linalg.matrix_norm(state, keepdim=True)
            scaled: Tensor = state * math.sqrt(self.rank) / norm.clamp_min(torch.finfo(state.dtype).tiny)
            return scaled
        apply: Callable[..., Tensor] = PartialIsometry.apply
        isometry: Tensor = apply(state, self.rank, self.plan.decomposition == "randomized")
        if self.plan.drop_near_equal and torch.is_grad_enabled():
            isometry = isometry * self._separate(torch.linalg.svdvals(state.detach()))
        return isometry

    def _separate(self, values: Tensor) -> Tensor:
        """0 for a state with consecutive singular values that are nearly equal, else 1: (..., 1, 1)."""
        gaps = (values[..., :-1] - values[..., 1:])[..., : self.rank]
        near = (gaps < 1e-7) | (gaps < 1e-7 * values[..., :1])
        return (~near.any(-1)).to(values.dtype)[..., None, None]

    def forward(self, inputs: Tensor, normal: Tensor) -> Tensor:
        """What the update adds to the layer's output, unmerged: inputs (rows, length, inputs), N (rows, d_r, d_r)."""
        return self.plan.scale * functional.linear(self.query(inputs) @ normal, self.O)

    def query(self, inputs: Tensor) -> Tensor:
        """Queries (..., d_r) of what the layer is given (..., inputs)."""
        return functional.linear(inputs.to(self.Q.dtype), self.Q)

    def update(self, normal: Tensor) -> Tensor:
        """The update of the layer's weights, (outputs, inputs)."""
        return self.plan.scale * self.O @ normal.mT @ self.Q

    def factors(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """B (outputs, rank) and A (rank, inputs) whose product is the update; the rank is d_r but with ``svd``."""
        normal = self.normalize(state)
        if self.plan.normalize != "svd":
            return self.plan.scale * self.O, normal.mT @ self.Q
        left, values, right = torch.linalg.svd(normal)
        left, right = left[:, : self.rank] * values[: self.rank], right[: self.rank]
        return self.plan.scale * self.O @ right.mT, left.mT @ self.Q


class GenerativeAdapter(MetaTrained):
    """Weights that a forward pass writes: each document's hidden states become an update of the attention's output.

    For each adapted layer a generator sums outer products of projected hidden states into a matrix of fixed size; of
    it, its singular values set to 1, two more projections make an update of the layer's weights, with which questions
    are answered closed book. The generators alone are trained, to restore and continue text and then to answer
    (Chen et al. 2024). Costs a forward pass and a small SVD per layer; its state is those matrices and layers.
    """

    name = "generative_adapter"
    paper = "chen2024generative"
    made_with = ("adapters", "parameters")

    class Config(MethodConfig):
        """Hyper-parameters of Generative Adapter."""

        presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
            "reference": {
                "training": {"inner": 1024, "rank": 128, "decomposition": "randomized", "drop_near_equal": True},
            }
        }
        preset: Literal["sound", "reference"] = pydantic.Field(
            default="sound", description="the values used here, or those of the authors' code"
        )
        encoding: Encoding | None = pydantic.Field(
            default=None, description="how the stream is read (training.encoding has the ways); null: as in training"
        )
        training: GeneratorTraining = pydantic.Field(
            default=GeneratorTraining(), description="the generator and how it is trained"
        )

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

    # The stream.

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

    # Reading: the base with hooks at the adapted layers.

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
        mask = _mask(chunks)
        written = []
        for i, generator in enumerate(self.generators):
            hidden, inputs, last = (
                pad_sequence([row[i][side][0] for row in read], batch_first=True) for side in range(3)
            )
            written.append(generator.write(hidden, inputs, mask, last))
        return written

    # Training.

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Documents in states, as many in each as it is the time for; text to be restored and continued, or questions.

        ``others`` are not used.
        """
        plan = self.config.training
        count = max(1, len(episodes) // plan.documents_at(self.progress))
        groups = [episodes[k::count] for k in range(count)]
        with self._frozen():
            if self.progress < plan.aligned_first:
                loss = self._alignment(*self._material(groups, plan.questions))
            elif self.progress < plan.qa_from:
                loss = self._text_loss(groups)
            else:
                parts = self._answer_loss(groups, plan.questions)
                loss = parts["answer_nll"] + plan.align * parts.get("alignment", 0.0)
            loss.backward()
        return {"loss": loss.item()}

    @torch.no_grad()
    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """-log p of the answers' tokens (nats) with all episodes in one state, and the alignment where it counts."""
        parts = {key: part.item() for key, part in self._answer_loss([episodes]).items()}
        return {"loss": parts.pop("answer_nll"), **parts}

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        self.lm.model.requires_grad_(False)
        try:
            yield
        finally:
            self.lm.model.requires_grad_(True)

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
        mask = _mask(chunks)
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

    def _nll(
        self, states: Sequence[Tensor], rows: Sequence[tuple[int, Tensor, Tensor]], queries: list[Tensor] | None = None
    ) -> Tensor:
        """Mean -log p (nats) of tokens, given in rows of (which state, tokens before, tokens): states (n, d_r, d_r).

        ``queries`` takes up those of each layer, (rows, d_r), where the first of the tokens is predicted.
        """
        normals = [g.normalize(state) for g, state in zip(self.generators, states, strict=True)]
        which = torch.tensor([k for k, _, _ in rows], device=self.lm.device)
        heads = [head[: self.lm.window + 1 - len(tail)] for _, head, tail in rows]
        tails = [tail for _, _, tail in rows]
        whole = [torch.cat(pair) for pair in zip(heads, tails, strict=True)]
        ids = pad_sequence(whole, batch_first=True, padding_value=self.lm.eos_id)
        places = torch.arange(ids.shape[1], device=self.lm.device)
        starts = torch.tensor([len(head) for head in heads], device=self.lm.device)[:, None]
        ends = torch.tensor([len(row) for row in whole], device=self.lm.device)[:, None]
        scored = ((places >= starts) & (places < ends))[:, 1:]

        def normal(i: int, _: Tensor, inputs: Tensor) -> Tensor:
            if queries is not None:
                last = inputs[torch.arange(len(rows), device=inputs.device), starts[:, 0] - 1]
                queries.append(self.generators[i].query(last))
            return normals[i][which]

        with self._adapting(normal):
            hidden = self._body(ids[:, :-1])[scored]
        logits: Tensor = self.lm.model.get_output_embeddings()(hidden)
        return functional.cross_entropy(logits.float(), ids[:, 1:][scored])

    def _material(
        self, groups: Sequence[Sequence[Episode]], most: int | None
    ) -> tuple[list[_Asked], list[list[_Piece]]]:
        """The questions on groups of documents (at most so many, drawn at random) and the documents' chunks."""
        begin, end = (torch.tensor([i], device=self.lm.device) for i in (self.lm.bos_id, self.lm.eos_id))
        encode, window = self.lm.encode, self.lm.window
        episodes = [(k, episode) for k, group in enumerate(groups) for episode in group]
        asked = [
            (k, n, question.text, min(answers, key=len))
            for n, (k, episode) in enumerate(episodes)
            for question, answers in zip(episode.questions, episode.answers, strict=True)
        ]
        if most is not None and most < len(asked):
            asked = [asked[i] for i in torch.randperm(len(asked))[:most].tolist()]
        rows = [
            _Asked(k, n, torch.cat([begin, encode(question)]), torch.cat([encode(" " + answer), end])[:window])
            for k, n, question, answer in asked
        ]
        pieces: list[list[_Piece]] = [[] for _ in groups]
        for n, (k, episode) in enumerate(episodes):
            pieces[k] += [_Piece(n, chunk) for chunk in self.chunks(episode.document)]
        return rows, pieces

    def _answer_loss(self, groups: Sequence[Sequence[Episode]], most: int | None = None) -> dict[str, Tensor]:
        """``answer_nll``, -log p of answers with each group of documents in a state, and ``alignment`` if it counts."""
        asked, pieces = self._material(groups, most)
        written = self.write([[piece.tokens for piece in group] for group in pieces])
        queries: list[Tensor] = []
        states = self._sums(written, pieces, [len(group) for group in pieces])
        found = {"answer_nll": self._nll(states, [(each.group, each.prompt, each.answer) for each in asked], queries)}
        if self.config.training.align:
            found["alignment"] = self._share(queries, written, asked, pieces)
        return found

    def _alignment(self, asked: Sequence[_Asked], pieces: Sequence[Sequence[_Piece]]) -> Tensor:
        """The alignment alone, with questions read by the bare base: it needs no answers and no gradient through it."""
        read = self._recall([each.prompt for each in asked])
        last = [torch.stack([row[i][1][0, -1] for row in read]) for i in range(len(self.places))]
        queries = [generator.query(inputs) for generator, inputs in zip(self.generators, last, strict=True)]
        return self._share(queries, self.write([[p.tokens for p in group] for group in pieces]), asked, pieces)

    def _share(
        self,
        queries: Sequence[Tensor],
        written: Sequence[Written],
        asked: Sequence[_Asked],
        pieces: Sequence[Sequence[_Piece]],
    ) -> Tensor:
        """:func:`alignment` with all documents of the step, whatever group they are in: a mean over the layers.

        Wanted are, in a question's document, the tokens that begin an answer to any of the questions on it: which of
        them answers this one is for the base to tell.
        """
        sources = torch.tensor([piece.document for group in pieces for piece in group], device=self.lm.device)
        own = sources == torch.tensor([each.document for each in asked], device=self.lm.device)[:, None]
        wanted: dict[int, set[int]] = {}
        for each in asked:
            wanted.setdefault(each.document, set()).add(int(each.answer[0]))
        told = pad_sequence(
            [
                torch.tensor([token in wanted.get(piece.document, ()) for token in piece.tokens.tolist()])
                for group in pieces
                for piece in group
            ],
            batch_first=True,
        ).to(self.lm.device)
        if self.config.training.values == "next_token":
            told = told[:, 1:]
        own = own[..., None] & told
        shares = [alignment(query, each.keys, own) for query, each in zip(queries, written, strict=True)]
        return torch.stack(shares).mean()

    def _text_loss(self, groups: Sequence[Sequence[Episode]]) -> Tensor:
        """-log p of text with the first so many chunks of each group in a state, a random number of them.

        It is the sum of two means over tokens: reconstruction, of a window that starts at random in what the state was
        made of, and completion, of the chunk after it (equation 5).
        """
        chunks = [[c for episode in group for c in self.chunks(episode.document)] for group in groups]
        chunks = [group for group in chunks if group]
        seen = [int(torch.randint(1, len(group) + 1, ())) for group in chunks]
        begin = torch.tensor([self.lm.bos_id], device=self.lm.device)
        longest = min(self.config.training.chunk, self.lm.window)
        again, onward = [], []
        for k, (group, count) in enumerate(zip(chunks, seen, strict=True)):
            text = torch.cat(group[:count])
            start = int(torch.randint(len(text), ()))
            again.append((k, begin, text[start : start + longest]))
            if count < len(group):
                onward.append((k, begin, group[count][-longest:]))
        states = self._sums(self.write(chunks), chunks, seen)
        loss = self._nll(states, again)
        return loss + self._nll(states, onward) if onward else loss

    def _sums(self, written: Sequence[Written], groups: Sequence[Sequence[Any]], counts: Sequence[int]) -> list[Tensor]:
        """The states of the first ``counts[k]`` chunks of each group, (groups, d_r, d_r)."""
        rows = sum(map(len, groups))
        chosen, start = torch.zeros(len(groups), rows, device=self.lm.device), 0
        for k, (group, count) in enumerate(zip(groups, counts, strict=True)):
            chosen[k, start : start + count] = 1
            start += len(group)
        return [torch.einsum("gr,rij->gij", chosen, each.state) for each in written]


def alignment(queries: Tensor, keys: Tensor, wanted: Tensor) -> Tensor:
    """Mean -log of the share that the tokens that are wanted have of all that a question's query brings back.

    That of a token is (q . k)^2, the energy with which the sum of k^T v gives its value to q: queries (questions,
    d_r), keys (rows, length, d_r), and which tokens are wanted, (questions, rows, length); questions that want none
    do not count. It does not change with the scale of either, as the normalised state does not.
    """
    energy = torch.einsum("qi,rli->qrl", queries, keys).square()
    some = wanted.flatten(1).any(1)
    tiny = torch.finfo(energy.dtype).tiny
    share = ((energy * wanted).sum((1, 2)) + tiny) / (energy.sum((1, 2)) + tiny)
    return -(share.log() * some).sum() / some.sum().clamp_min(1)


def _mask(chunks: Sequence[Tensor]) -> Tensor:
    """1 for a token, 0 for padding on the right: (rows, length)."""
    return pad_sequence([torch.ones(len(chunk), device=chunk.device) for chunk in chunks], batch_first=True)


def _shape(module: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)
