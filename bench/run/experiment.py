"""Experiments: validated YAML files that say what to run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from bench import declared, paths
from bench.answering.decoding import Decoding
from bench.answering.retune import Retune
from bench.contract.search import Range
from bench.data.prompt_format import PLAIN, PromptFormat
from bench.errors import BenchError, first_problem, nearest
from bench.files import parse_yaml
from bench.records import boards
from bench.records.schema import NOTED_DOCUMENTS, Asked
from bench.run.lengths import PlannedArm
from bench.settings import merged, nested


def _different(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"a seed is listed twice: {seeds}")
    return seeds


def _named(places: list[str]) -> list[str]:
    names = [Path(place).name for place in places]
    for place, name in zip(places, names, strict=True):
        if not name.strip("."):
            raise ValueError(f"{place!r} does not end in a name for its board: write out the path")
        if names.count(name) > 1:
            raise ValueError(f"two are named {name} and would share a board: rename or leave out one of them")
    return places


def _word(name: str) -> str:
    if not boards.NAME.fullmatch(name):
        raise ValueError(f"{boards.NAME_RULE}: rename the file, or state name: in it")
    return name


class _Part(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    def override(self, values: Mapping[str, Any]) -> None:
        """Set several fields.

        Raises:
            BenchError: a value is out of bounds.
        """
        for key, value in values.items():
            try:
                setattr(self, key, value)
            except pydantic.ValidationError as error:
                raise BenchError(first_problem(error, type(self))) from None


class StreamPlan(_Part):
    """The frozen streams of a split that are used."""

    split: str
    documents: int | None = pydantic.Field(default=None, ge=1, description="per stream; null takes the whole split")
    count: int = pydantic.Field(ge=1)


class TuningPlan(StreamPlan):
    """The validation streams on which methods are tuned, and the number of trials of each method."""

    split: str = "validation"
    metric: Literal["f1", "token_nll"] = "f1"
    trials: int = pydantic.Field(default=8, ge=1, description="configs tried of every method that is tuned")

    @pydantic.field_validator("split")
    @classmethod
    def _is_validation(cls, value: str) -> str:
        if value != "validation":
            raise ValueError("hyper-parameters are tuned on the validation split only (docs/rules.md)")
        return value


class EqualCompute(_Part):
    """A limit on what methods may spend: the operations of this method in observing, with these steps per document."""

    method: str
    steps: int = pydantic.Field(ge=1)


class AnchorPlan(_Part):
    """Size of the anchor set: old knowledge that is tested before and after the stream."""

    questions: int = pydantic.Field(default=0, ge=0)
    documents: int = pydantic.Field(default=0, ge=0)


SHORTEST_WINDOW = 64
"""Smallest window that an experiment can state: shorter ones leave no room for a question and its answer."""

OWN_SCALE = "paper"
"""The scale of a file's own settings, if it states others."""

Seeds = Annotated[list[int], pydantic.Field(min_length=1), pydantic.AfterValidator(_different)]
"""Random seeds, each once."""


Places = Annotated[list[str], pydantic.AfterValidator(_named)]
"""Datasets or base models, by name or path, whose boards are named after them."""


def _kind(values: object) -> str:
    return "choices" if isinstance(values, list) else "range"


Values = Annotated[
    Annotated[Range, pydantic.Tag("range")]
    | Annotated[list[Any], pydantic.Field(min_length=1), pydantic.Tag("choices")],
    pydantic.Discriminator(_kind),
]
"""A range, or a list of choices: which one it should be is seen before it is read, so that errors are about that."""


class MethodPlan(_Part):
    """One method of the experiment: fixed settings, the search space (default: the method's own), arms and seeds.

    An ``optional`` method is left out, with a remark, if the split that it learns from offline is missing, or its
    trained weights are. ``like`` names an experiment whose first entry of this method is the base of this one:
    ``config`` is merged into the config of that entry, and the other fields that are set here replace those of that
    entry. Experiments that share cells or trained weights thus state them once. An entry with ``bases`` runs on the
    experiment's base models of these names alone, and is like an entry with the same ones, if there is one. On a base
    that no entry of its method names, the first one runs.
    """

    name: str
    like: str | None = pydantic.Field(default=None, exclude=True)
    config: dict[str, Any] = {}
    space: dict[str, Values] | None = None
    seeds: Seeds | None = None
    arms: list[PlannedArm] = pydantic.Field(default=["stream"], min_length=1)
    optional: bool = False
    bases: list[str] = []

    def start_from(self, experiment: Experiment) -> None:
        """Complete this entry from the first entry of the same method in the experiment that ``like`` names.

        Raises:
            BenchError: the experiment has no entry of this method, or only entries that use ``like`` themselves.
        """
        entries = [plan for plan in experiment.methods if plan.name == self.name and plan.like is None]
        base = next((plan for plan in entries if plan.bases == self.bases), next(iter(entries), None))
        if base is None:
            raise BenchError(
                f"like: {experiment.name}: {experiment.name} has no entry of {self.name} that states its settings. "
                f"Name an experiment that has one, or write the settings here."
            )
        fields = {**base.model_dump(exclude_unset=True, exclude={"bases"}), **self.model_dump(exclude_unset=True)}
        self.override({**fields, "config": merged(base.config, self.config)})


SEVERAL = {"dataset": "datasets", "model": "models"}
"""The settings of which an experiment can state several, each with the name of their list."""


class Experiment(_Part):
    """Everything that a board needs. docs/rules.md explains the rules.

    With several ``datasets`` or ``models`` in place of one, each pair of them has a board of its own
    (:meth:`on_each_pair`); ``dataset`` and ``model`` are then the first ones. In a file, ``like`` names another
    experiment, whose settings hold where this one states none.
    """

    name: Annotated[str, pydantic.AfterValidator(_word)]
    description: str = ""
    dataset: str
    datasets: Places = pydantic.Field(
        default=[], description="datasets, in place of one: the same methods run on each, with a board for each"
    )
    data_files: dict[str, list[str]] = pydantic.Field(
        default={}, description="by split, or by DATASET.SPLIT: files in place of the dataset's own"
    )
    model: str = pydantic.Field(default="nano", description="base model; {dataset} in it stands for the dataset's name")
    models: Places = pydantic.Field(
        default=[], description="base models, in place of one: the same methods run on each, with a board for each"
    )
    device: Literal["cpu", "cuda", "mps"] = "cpu"
    offload: bool = pydantic.Field(
        default=False,
        description="keep in main memory what of the base the GPUs have no room for; such a base does not learn",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    window: int | None = pydantic.Field(
        default=None, ge=SHORTEST_WINDOW, description="most tokens read at once; null: as many as the model can read"
    )
    deterministic: bool = pydantic.Field(
        default=False, description="use only algorithms of torch that give the same bits each time, also on a GPU"
    )
    seeds: Seeds = [0]
    orders: int = pydantic.Field(
        default=1, ge=1, le=1000, description="orders of each stream's documents: its own, and permutations of it"
    )
    streams: StreamPlan
    tuning: TuningPlan | None = None
    equal_compute: EqualCompute | None = None
    allow_overlap: bool = pydantic.Field(
        default=False,
        description="go on, with a mark on every row, if a split in use shares documents with another one",
    )
    methods: list[MethodPlan] = pydantic.Field(min_length=1)
    probes: tuple[float, ...] = pydantic.Field(
        default=(1.0,),
        description="fractions of the stream after which questions are asked, or n: after each of n parts",
    )
    questions: Asked = pydantic.Field(
        default="seen",
        description="at a probe: those on all documents seen so far, or at every probe those of the first probe",
    )
    scoring: bool = True
    reread: bool = pydantic.Field(
        default=False, description="score each document, or segment, again after it was observed"
    )
    gradient_norms: int = pydantic.Field(
        default=0,
        ge=0,
        le=NOTED_DOCUMENTS,
        description="documents, from the first of a stream, for whose tokens the gradients' norms are recorded",
    )
    segment_tokens: int | None = pydantic.Field(default=None, ge=1)
    anchor: AnchorPlan = AnchorPlan()
    prompt: PromptFormat = PLAIN
    decoding: Decoding = Decoding()
    retune: Retune | None = pydantic.Field(
        default=None, description="tune the model on questions of qa_train before it answers at each probe"
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _take_the_first(cls, values: Any) -> Any:
        for one, several in SEVERAL.items() if isinstance(values, dict) else ():
            if isinstance(stated := values.get(several), list) and stated:
                values = {one: stated[0], **values}
                if values[one] != stated[0]:
                    raise ValueError(f"{one} is not the first of {several}: state {several} alone")
        return values

    @pydantic.field_validator("methods", mode="before")
    @classmethod
    def _expand_names(cls, value: Any) -> Any:
        if not isinstance(value, list):
            raise ValueError("methods is a list of names, or of mappings with a name")
        return [{"name": item} if isinstance(item, str) else item for item in value]

    @pydantic.field_validator("probes", mode="before")
    @classmethod
    def _at_even_places(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return [place * 10**12 // value / 10**12 for place in range(1, value + 1)]  # rounded up it is one too late
        return value

    @pydantic.field_validator("probes")
    @classmethod
    def _sort_probes(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or any(not 0 <= probe <= 1 for probe in value):
            raise ValueError("probes are fractions of the stream between 0 and 1, at least one")
        return tuple(sorted(set(value)))

    @pydantic.field_validator("questions")
    @classmethod
    def _has_steps(cls, value: Asked, info: pydantic.ValidationInfo) -> Asked:
        probes = [probe for probe in info.data.get("probes", ()) if probe > 0]
        if value == "first" and len(probes) < 2:
            raise ValueError(
                "retention is measured from the first probe on, so it needs two or more, as in probes: [0.2, 0.6, 1]"
            )
        return value

    def on_each_pair(self) -> list[Experiment]:
        """The experiment on each pair of its datasets and base models, with the files and entries of that pair.

        The first one keeps the name. Those of the others end in the dataset and the base, as far as there are several.

        Raises:
            BenchError: files are given to no dataset of the experiment, or two pairs would have one name.
        """
        datasets, models = self.datasets or [self.dataset], self.models or [self.model]
        check_files(self.name, self.data_files, datasets)
        pairs: list[Experiment] = []
        for dataset, template in itertools.product(datasets, models):
            model = template.replace("{dataset}", Path(dataset).name)
            parts = itertools.compress((dataset, model), (len(datasets) > 1, len(models) > 1))
            changes = {
                "name": "-".join([self.name, *(Path(part).name for part in parts)]),
                "dataset": dataset,
                "datasets": [],
                "data_files": by_split(dataset, self.data_files),
                "model": model,
                "models": [],
            }
            pair = self.model_copy(update=changes, deep=True)
            pair.methods = pair._entries_on(model)
            pairs.append(pair)
        names = [pair.name for pair in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise BenchError(
                f"Two pairs of dataset and base would share the board {twice}: rename one of their folders."
            )
        return [pairs[0].model_copy(update={"name": self.name}), *pairs[1:]]

    def _entries_on(self, model: str) -> list[MethodPlan]:
        base = _base_name(model)
        own = [plan for plan in self.methods if not plan.bases or base in plan.bases]
        names = {plan.name for plan in own}
        first = {plan.name: plan for plan in reversed(self.methods)}
        return [plan for plan in self.methods if plan in own or (plan.name not in names and plan is first[plan.name])]

    def select(self, names: Iterable[str]) -> None:
        """Keep only these methods, in this order. A method that the experiment lacks is added with its defaults."""
        entries = {name: [plan for plan in self.methods if plan.name == name] for name in names}
        self.methods = [plan for name, plans in entries.items() for plan in plans or [MethodPlan(name=name)]]

    def set(self, assignment: str) -> None:
        """Fix one hyper-parameter, ``method.key=value`` (the value in YAML). It is then not tuned.

        Raises:
            BenchError: the assignment has another form, or the experiment has no such method.
        """
        target, separator, value = assignment.partition("=")
        name, dot, key = target.partition(".")
        if not (separator and dot and key):
            raise BenchError(f"--set takes method.key=value, got {assignment!r}.")
        setting = parse_yaml(value, f"--set {assignment}: the value")
        plans = [plan for plan in self.methods if plan.name == name]
        for plan in plans:
            plan.config = merged(plan.config, nested(key.split("."), setting))
        if not plans:
            hint = nearest(name, [plan.name for plan in self.methods])
            raise BenchError(f"--set {assignment}: the experiment has no method {name!r}.{hint}")


def check_files(name: str, data_files: Iterable[str], datasets: Iterable[str]) -> None:
    """Check that all files are given to one of the datasets; the only one may go unnamed.

    Args:
        name: what has these datasets, for the message.
        data_files: keys of files, as :attr:`Experiment.data_files` has them.
        datasets: names or paths.

    Raises:
        BenchError: a key names none of the datasets, or does not say which one of several it means.
    """
    known = [*dict.fromkeys(Path(dataset).name for dataset in datasets)]
    for key in data_files:
        dataset, dot, split = key.rpartition(".")
        if dot and Path(dataset).name not in known:
            raise BenchError(f"--data-files {key}: {name} has no dataset {dataset!r}.{nearest(dataset, known)}")
        if not dot and len(known) > 1:
            raise BenchError(
                f"--data-files {key}: {name} has several datasets. Write {known[0]}=FOLDER, or {known[0]}.{split}=FILE."
            )


def files_of(datasets: Iterable[str], data_files: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The files of these datasets, and those that name none, from files by split or by ``<dataset>.<split>``."""
    known = {"", *(Path(dataset).name for dataset in datasets)}
    return {key: files for key, files in data_files.items() if Path(key.rpartition(".")[0]).name in known}


def by_split(dataset: str, data_files: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The files of one dataset, by split alone."""
    return {key.rpartition(".")[2]: files for key, files in files_of([dataset], data_files).items()}


def load(name: str, scale: str | None = None) -> Experiment:
    """An experiment by name or from a YAML file, as it is or at one of the ``scales`` that the file states.

    A scale is a mapping of settings that replace those of the file; its board has a name of its own. The file itself
    has the scale ``paper``, if it states others.

    Raises:
        BenchError: there is no such experiment or scale, its YAML cannot be read, a key is unknown or a value out of
            bounds.
    """
    experiment = _read(name, scale)
    bases = {base: _read(base) for base in {plan.like for plan in experiment.methods} if base is not None}
    for plan in experiment.methods:
        if plan.like is not None:
            plan.start_from(bases[plan.like])
    return experiment


def _base_name(model: str) -> str:
    """The name of a base model, from its path or hub id, without a revision."""
    return Path(model).name.partition("@")[0]


def _read(name: str, scale: str | None = None) -> Experiment:
    """An experiment as its file states it, with the ``like`` of its methods not yet resolved."""
    file, values = _values(name)
    stem, scales = Path(file).stem, values.pop("scales", {})
    scales = scales if isinstance(scales, dict) else {}
    if scale is not None and not (scale == OWN_SCALE and scales and scale not in scales):
        if not isinstance(scales.get(scale), dict):
            hint = nearest(scale, [*map(str, scales), *([OWN_SCALE] if scales else [])]) or " It has one size only."
            raise BenchError(f"{stem} has no scale {scale!r}.{hint}")
        values = {**_onto(values, scales[scale]), "name": f"{values.get('name', stem)}-{scale}"}
    if (like := values.pop("like", None)) is not None:
        base = _values(str(like))[1]
        if "like" in base:
            raise BenchError(
                f"{file}: like: {like} is itself like {base['like']}. Name that one, or write the settings."
            )
        for own in ("scales", "name"):
            base.pop(own, None)
        values = _onto(base, values)
    try:
        experiment = Experiment.model_validate({"name": stem, **values})
    except pydantic.ValidationError as error:
        raise BenchError(f"{file}: {first_problem(error, Experiment)}") from None
    known = [_base_name(model) for model in experiment.models or [experiment.model]]
    for plan in experiment.methods if like is None else ():  # else it may be of the other file, which has other bases
        if wrong := next((base for base in plan.bases if base not in known), None):
            raise BenchError(f"{file}: {plan.name}.bases: there is no base {wrong!r}.{nearest(wrong, known)}")
    return experiment


def _onto(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, and those of ``base`` that they do not replace. Several datasets replace one, and the reverse."""
    replaced = {key for pair in SEVERAL.items() for key in pair if values.keys() & {*pair}}
    return {**{key: value for key, value in base.items() if key not in replaced}, **values}


def _values(name: str) -> tuple[str, dict[str, Any]]:
    """The name of an experiment's file, and the settings in it."""
    path, values = declared.read("experiment", name, paths.EXPERIMENTS, "bench/experiments/default.yaml")
    return path.name, values
