from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench import Conditioning, Episode, Question
from methods.parts.amortized_bank import AmortizedMemory
from methods.parts.hooked_lora import HookedLora, key_value_places
from methods.parts.text_encoder import REFERENCE, AmortizedTraining


class Codebook(nn.Module):
    """Vectors that stand for rows: each row is replaced by the nearest one."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(codes, width).uniform_(-1 / codes, 1 / codes))
        self.usage: Tensor
        self.register_buffer("usage", torch.full((codes,), 1 / codes))

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Index of the code nearest to each row: (..., width) -> (...)."""
        flat = rows.flatten(0, -2)
        distance = self.vectors.pow(2).sum(1) - 2 * flat @ self.vectors.T  # the rows' own norm is the same for all
        return distance.argmin(1).view(rows.shape[:-1])

    @torch.no_grad()
    def revive(self, rows: Tensor, codes: Tensor, decay: float, least: float) -> None:
        """Follow each code's share of the rows (..., width), given the rows' codes (...), and put random rows in the
        place of codes that hardly any row takes."""
        flat = rows.flatten(0, -2)
        shares = torch.bincount(codes.flatten(), minlength=len(self.usage)) / len(flat)
        self.usage.mul_(decay).add_(shares, alpha=1 - decay)
        dead = self.usage < least
        count = int(dead.sum())
        if count:
            self.vectors[dead] = flat[torch.randint(len(flat), (count,), device=flat.device)]
            self.usage[dead] = self.usage.mean()


class MbcTraining(AmortizedTraining):
    """The networks, the codebook, and how they are trained."""

    codes: int = pydantic.Field(default=512, ge=1, description="vectors in the codebook")
    commitment: float = pydantic.Field(default=0.25, ge=0, description="weight that pulls rows towards their codes")
    codebook_weight: float = pydantic.Field(default=1.0, ge=0, description="weight of the codebook's loss in all")
    usage_decay: float = pydantic.Field(
        default=0.99, ge=0, lt=1, description="of the moving average of the codes' usage"
    )
    least_usage: float = pydantic.Field(
        default=1e-4,
        ge=0,
        description="share of the rows under which a code is replaced by a row of the step's; 0: never",
    )
    lora_rank: int = pydantic.Field(
        default=0, ge=0, description="of adapters on the base's keys and values, which fine-tune it; 0: none"
    )
    lora_alpha: float = pydantic.Field(default=32, gt=0, description="their output is scaled by alpha / rank")
    lora_layers: int | None = pydantic.Field(
        default=None, ge=1, description="the last so many blocks have them; null: all"
    )
    lora_dropout: float = pydantic.Field(default=0.05, ge=0, lt=1, description="within them, while training")


class Mbc(AmortizedMemory):
    """Memory Bank Compression: the bank of `mac`, each row replaced by one of a few learned codes.

    Rows know neither their document nor their order, so all that the bank holds is how often each code was taken, and
    attention over the rows is attention over the codes with the logarithm of their counts added to the logits. The
    codebook is trained with the straight-through estimator, and is frozen while documents stream (arXiv 2601.00756).
    Costs what `mac` costs; the state is one integer per code however long the stream, beside the names of documents.

    With ``training.lora_rank`` the base gets low-rank adapters on its keys and values, which are trained with the rest
    and act on whatever it reads from the first document or question to the next reset: on documents that are scored,
    on other text, and with an empty bank too. That fine-tunes the base to answer, hence it is off by default.
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
        training: MbcTraining = pydantic.Field(default=MbcTraining(), description="the networks, and their training")

    def build(self) -> nn.Module:
        """The codebook and the adapters too."""
        networks, plan = super().build(), self.config.training
        self.codebook = Codebook(plan.codes, self.row_shape[1])
        places = key_value_places(self.lm, plan.lora_layers) if plan.lora_rank else []
        self.lora = HookedLora(places, plan.lora_rank, plan.lora_alpha, plan.lora_dropout)
        networks.add_module("codebook", self.codebook)
        networks.add_module("lora", self.lora)
        return networks

    def reset(self) -> None:
        """Take the adapters out of the base too."""
        self.lora.remove()
        super().reset()

    def begin_document(self) -> None:
        """The adapters act before the document is scored."""
        self.lora.attach()

    def condition(self, questions: Sequence[Question]) -> Conditioning:
        """The adapters act when the questions are answered, even if no document came before."""
        self.lora.attach()
        return super().condition(questions)

    def outer_step(self, episodes: Sequence[Episode], others: Sequence[Episode]) -> dict[str, float]:
        """Answer NLL over the bank of the step's documents, the adapters acting with dropout and learning too."""
        self.lora.train()
        with self.lora.attached():
            parts = super().outer_step(episodes, others)
        self.lora.eval()
        return parts

    def validate(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """Answer NLL over one bank of all validation documents, the adapters acting."""
        with self.lora.attached():
            return super().validate(episodes)

    def prepare_bank(self) -> None:
        """The state: how many rows took each code, shape (codes,)."""
        self.counts: Tensor
        self.register("counts", torch.zeros(len(self.codebook.usage), dtype=torch.int32, device=self.lm.device))

    def remember(self, rows: Tensor) -> None:
        """Count the codes of the rows."""
        codes = self.codebook.nearest(rows).flatten()
        self.counts = self.counts + torch.bincount(codes, minlength=len(self.counts)).to(self.counts)

    def kept(self) -> Tensor:
        """The counts."""
        return self.counts

    def aggregate(self, queries: Tensor, rows: Tensor, bias: Tensor | None = None) -> Tensor:
        """From rows while training, and from the counts of the codes, (codes,) integers, when answering."""
        if rows.is_floating_point():
            return super().aggregate(queries, rows, bias)
        taken = rows.nonzero()[:, 0]
        return super().aggregate(queries, self.codebook.vectors[taken][:, None], rows[taken].float().log()[None])

    def stored(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors nearest to the rows, with a gradient as if the rows had been left alone; and which these are."""
        codes = self.codebook.nearest(rows)
        return rows + (self.codebook.vectors[codes] - rows).detach(), codes

    def penalty(self, rows: Tensor, kept: Tensor) -> Tensor:
        """Vectors are drawn to their rows, and more weakly rows to them; then codes without rows are replaced."""
        plan, vectors = self.config.training, self.codebook.vectors[kept]
        drawn = functional.mse_loss(vectors, rows.detach())
        drawn = drawn + plan.commitment * functional.mse_loss(rows, vectors.detach())
        self.codebook.revive(rows.detach(), kept, plan.usage_decay, plan.least_usage)
        loss: Tensor = plan.codebook_weight * drawn
        return loss
