"""Retuning before answering: a setting of the experiment, the same for every method of a board."""

from __future__ import annotations

import pydantic

from bench.contract.config import MethodConfig


class Retune(MethodConfig):
    """Steps on questions of ``qa_train``, without any document, before the questions of a probe are answered.

    Learning from documents changes how a model answers as well as what it knows: its answers run on, as documents do.
    A few steps on questions bring the answer format back (Hu et al. 2023). They may also teach facts, so that the
    model without any document, retuned alike, is the control. :mod:`bench.answering.retuning` has the procedure.
    """

    steps: int = pydantic.Field(default=32, ge=1, description="most steps per probe; the paper's code sets no limit")
    rate: float = pydantic.Field(default=2.5e-5, gt=0, description="constant step size of Adam")
