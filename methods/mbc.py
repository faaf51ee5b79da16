from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import Conditioning, Episode, Question
from methods.parts.amortized_bank import AmortizedMemory
from methods.parts.hooked_lora import HookedLora, key_value_targets
from methods.parts.text_encoder import REFERENCE, AmortizedTraining


class Codebook(nn.Module):
    """A codebook of vectors: each row is replaced by the nearest one."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(codes, width).uniform_(-1 / codes, 1 / codes))
        self.usage: Tensor  # (codes,), moving average of the number of rows with each code
        self.register_buffer("usage", torch.zeros(codes))

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Index of the code nearest to each row: (..., width) -> (...)."""
        flat = rows.flatten(0, -2)  # (rows, width)
        # squared distances (rows, codes) without the rows' own norm, which is the same for all codes
        distances = self.vectors.pow(2).sum(1) - 2 * flat @ self.vectors.T
        return distances.argmin(1).view(rows.shape[:-1])

    @torch.no_grad()
    def update_usage(self, rows: Tensor, codes: Tensor, decay: float, least: float) -> None:
        """Update the usage from rows (..., width) and their codes (...).

        A code whose usage is below ``least`` is replaced by a random one of the rows, and gets the mean usage.
        """
        flat = rows.flatten(0, -2)  # (rows, width)
        counts = torch.bincount(codes.flatten(), minlength=len(self.usage)).to(self.usage)  # (codes,)
        self.usage.mul_(decay).add_(counts, alpha=1 - decay)
        dead = self.usage < least  # (codes,)
        count = int(dead.sum())
        if count:
            self.vectors[dead] = flat[torch.randint(len(flat), (count,), device=flat.device)]
            self.usage[dead] = self.usage.mean()


class MbcTraining(AmortizedTraining):
    """The networks, the codebook and their training."""

    codes: int = pydantic.Field(default=512, ge=1, description="vectors in the codebook")
    commitment: float = pydantic.Field(default=0.25, ge=0, description="weight that pulls rows towards their codes")
    usage_decay: float = pydantic.Field(default=0.99, ge=0, lt=1, description="decay of the moving average of usage")
    least_count: float = pydantic.Field(
        default=1e-4,
        ge=0,
        description="moving average of the number of a code's rows below which a row of the current step replaces it; "
        "0: never",
    )
    lora_rank: int = pydantic.Field(
        default=0,
        ge=0,
        description="rank of adapters on the base's keys and values, which fine-tune it; 0: no adapters",
    )
    lora_alpha: float = pydantic.Field(default=32, gt=0, description="the adapters' output is scaled by alpha / rank")
    lora_layers: int | None = pydantic.Field(
        default=None, ge=1, description="number of last blocks with adapters; null: all blocks"
    )
    lora_dropout: float = pydantic.Field(default=0.05, ge=0, lt=1, description="dropout in the adapters while training")


class Mbc(AmortizedMemory):
    """Memory Bank Compression: the bank of `mac`, with each row replaced by the nearest of a few learned codes.

    Rows carry neither their document nor their order, so the bank only holds how often each code was used. Attention
    over the rows is attention over the codes with the logarithm of their counts added to the logits. The codebook is
    trained with the straight-through estimator, and frozen while documents stream (arXiv 2601.00756). Costs the same
    as `mac`; besides the ids of the documents, the state is one integer per code, however long the stream.

    With ``training.lora_rank``, the base gets low-rank adapters on its keys and values. They are trained with the rest
    and act on everything that it reads from the first document or question to the next reset: on documents that are
    scored, on other text, and with an empty bank. That fine-tunes the base to answer, hence it is off by default.
    """

    name = "mbc"
    paper = "mbc2026"

    class Config(AmortizedMemory.Config):
        """Hyper-parameters of MBC."""

        presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
            "reference": {
                "training": {
                    **REFERENCE,
                    "amortizer": "t5-small",
                    "question_encoder": "t5-small",
                    "lora_rank": 16,
                    "lora_layers": 6,
                    "patience": 10,
                }
            }
        }
        training: MbcTraining = pydantic.Field(default=MbcTraining(), description="the networks and their training")

    def build(self) -> nn.Module:
        """Build the codebook and the adapters too."""
        networks, training = super().build(), self.config.training
        self.codebook = Codebook(training.codes, self.row_shape[1])
        targets = key_value_targets(self.lm, training.lora_layers) if training.lora_rank else []
        self.lora = HookedLora(targets, training.lora_rank, training.lora_alpha, training.lora_dropout)
        networks.add_module("codebook", self.codebook)
        networks.add_module("lora", self.lora)
        return networks

    def reset(self) -> None:
        """Empty the bank, and take the adapters out of the base."""
        self.lora.remove()
        super().reset()

    def begin_document(self) -> None:
        """Attach the adapters before the document is scored."""
        self.lora.attach()

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """The prefix of each question; the adapters are attached for the answers, even if no document came before."""
        self.lora.attach()
        return super().condition(questions)

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Add the gradient of the answer NLL over the bank of the step's documents; the adapters learn too."""
        self.lora.train()  # with dropout
        with self.lora.attached():
            parts = super().outer_step(episodes, others)
        self.lora.eval()
        return parts

    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Answer NLL over one bank of all validation documents, with the adapters."""
        with self.lora.attached():
            return super().validate(episodes)

    def prepare_bank(self) -> None:
        """Make the bank part of the state: the number of rows with each code, (codes,)."""
        self.counts: Tensor
        self.register("counts", torch.zeros(len(self.codebook.usage), dtype=torch.int32, device=self.lm.device))

    def remember(self, rows: Tensor) -> None:
        """Count the codes of the rows (entries, T, width)."""
        codes = self.codebook.nearest(rows).flatten()
        self.counts = self.counts + torch.bincount(codes, minlength=len(self.counts)).to(self.counts)

    @property
    def bank(self) -> Tensor:
        """The counts, (codes,)."""
        return self.counts

    def aggregate(self, queries: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """Aggregate rows (entries, T, width) while training, or the counts of the codes, (codes,) integers."""
        if rows.is_floating_point():
            return super().aggregate(queries, rows, bias)
        used = rows.nonzero()[:, 0]  # (used codes,)
        log_counts = rows[used].float().log()[None]  # (1, used codes)
        return super().aggregate(queries, self.codebook.vectors[used][:, None], log_counts)

    def quantize(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The code vectors nearest to the rows, and their indices. The gradient passes straight through to the rows."""
        codes = self.codebook.nearest(rows)  # (entries, T)
        return rows + (self.codebook.vectors[codes] - rows).detach(), codes

    def penalty(self, rows: Tensor, codes: Tensor) -> Tensor:
        """The codebook loss: code vectors are pulled to their rows, and rows, by ``commitment``, to their vectors.

        Then the usage of the codes is updated.
        """
        training, vectors = self.config.training, self.codebook.vectors[codes]  # (entries, T, width)
        loss: Tensor = functional.mse_loss(vectors, rows.detach())
        loss = loss + training.commitment * functional.mse_loss(rows, vectors.detach())
        self.codebook.update_usage(rows.detach(), codes, training.usage_decay, training.least_count)
        return loss
