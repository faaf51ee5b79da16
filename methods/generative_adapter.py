from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import pydantic
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from bench import Episode, MethodConfig
from methods.parts.generated_weights import WrittenWeights
from methods.parts.weight_generator import Encoding, GeneratorTraining, Written


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


class GenerativeAdapter(WrittenWeights):
    """Weights that a forward pass writes: each document's hidden states become an update of the attention's output.

    For each adapted layer a generator sums outer products of projected hidden states into a matrix of fixed size; of
    it, its singular values set to 1, two more projections make an update of the layer's weights, with which questions
    are answered closed book. The generators alone are trained, to restore and continue text and then to answer
    (Chen et al. 2024). Costs a forward pass and a small SVD per layer; its state is those matrices and layers.
    """

    name = "generative_adapter"
    paper = "chen2024generative"

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

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Documents in states, as many in each as it is the time for; text to be restored and continued, or questions.

        ``others`` are not used.
        """
        plan = self.config.training
        count = max(1, len(episodes) // plan.documents_at(self.progress))
        groups = [episodes[k::count] for k in range(count)]
        with self.lm.frozen():
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
