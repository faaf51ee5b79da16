"""Base class of gradient methods that train a low-rank adapter."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Parameter

from bench import BaseModel, GradientMethod, MethodConfig
from bench.lm.probe import Ability
from methods.parts.adapters import Adapter


class AdapterMethod(GradientMethod):
    """Fine-tuning of an adapter, which is inserted into the base on first use and removed by :meth:`reset`."""

    def __init__(self, lm: BaseModel, config: MethodConfig | None = None, seed: int = 0) -> None:
        super().__init__(lm, config, seed)
        self._adapter: Adapter | None = None

    @classmethod
    def needs(cls, config: MethodConfig) -> Sequence[Ability]:
        """Gradients alone: the base may be quantized."""
        return ("gradients",)

    @abstractmethod
    def build_adapter(self) -> Adapter:
        """Insert a new adapter into the base."""

    @property
    def adapter(self) -> Adapter:
        """The adapter in the base; inserted if there is none."""
        if self._adapter is None:
            self._adapter = self.build_adapter()
        return self._adapter

    @property
    def is_adapted(self) -> bool:
        """True if an adapter is in the base."""
        return self._adapter is not None

    def trainable_parameters(self) -> Iterable[tuple[str, Parameter]]:
        """The adapter's parameters."""
        return self.adapter.named_parameters()

    def notes(self) -> dict[str, Any]:
        """A remark on the matrices that no adapter reaches, if the adapter is in the base."""
        names = [] if self._adapter is None else self._adapter.unadapted
        if not names:
            return super().notes()
        numbers = [parameter.numel() for name, parameter in self.lm.named_tensors() if name in set(names)]
        remark = (
            f"{self.name} does not adapt {names[0]} and others of {type(self.lm.model).__name__} that are not linear "
            f"layers: {len(names)} matrices with {sum(numbers):,} weights."
        )
        return {**super().notes(), "remarks": [remark]}

    def merge(self) -> None:
        """Add the adapter to the base's weights and remove it: the model computes the same."""
        self.adapter.merge()
        self._adapter = None
        self.drop_optimizer()

    def remove(self) -> None:
        """Remove the adapter if there is one: the model has its original modules again."""
        if self._adapter is not None:
            self._adapter.remove()
        self._adapter = None

    def reset(self) -> None:
        """Remove the adapter and restore the base."""
        self.remove()
        super().reset()

    def state_dict(self) -> dict[str, Tensor]:
        """State of the base class and the adapter's parameters."""
        adapter = {} if self._adapter is None else self._adapter.state_dict()
        return {**super().state_dict(), **{f"adapter.{name}": value for name, value in adapter.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state; it has an adapter only if the state has one."""
        self.remove()
        saved = {name.removeprefix("adapter."): state[name] for name in state if name.startswith("adapter.")}
        if saved:
            self.adapter.load_state_dict(saved)
        super().load_state_dict(state)
