import pydantic
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.amortized import AmortizedMemory, AmortizedTraining


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


class Mbc(AmortizedMemory):
    """Memory Bank Compression: the bank of `mac`, each row replaced by one of a few learned codes.

    Rows know neither their document nor their order, so all that the bank holds is how often each code was taken, and
    attention over the rows is attention over the codes with the logarithm of their counts added to the logits. The
    codebook is trained with the straight-through estimator, and is frozen while documents stream (arXiv 2601.00756).
    Costs what `mac` costs; the state is one integer per code however long the stream, beside the names of documents.
    """

    name = "mbc"
    paper = "mbc2026"
    made_with = ("bank", "aggregation", "amortizer", "amortized")

    class Config(AmortizedMemory.Config):
        """Hyper-parameters of MBC."""

        training: MbcTraining = pydantic.Field(default=MbcTraining(), description="the networks, and their training")

    def build(self) -> nn.Module:
        """The codebook too."""
        networks = super().build()
        self.codebook = Codebook(self.config.training.codes, self.row_shape[1])
        networks.add_module("codebook", self.codebook)
        return networks

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
