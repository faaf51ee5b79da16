"""Experiment files: entries that are based on another file, wrong files, and changes for one command."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.contract.method import validate_config
from bench.contract.registry import load_method
from bench.contract.search import Range
from bench.errors import BenchError
from bench.paths import experiments
from bench.records.schema import documents_seen
from bench.run.experiment import EqualCompute, load
from bench.run.overrides import Overrides
from tests.conftest import ROOT

Write = Callable[[str, str], str]

BASE = """
  - closed_book
  - {name: lora, config: {rank: 4, targets: mlp}, space: {learning_rate: [0.1, 0.2]}, arms: [stream, placebo]}
  - {name: lora, config: {rank: 8}}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, methods: str) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"dataset: newsworld\nstreams: {{split: test, count: 1}}\nmethods: {methods}")
        return str(path)

    write("base", BASE)
    return write


@pytest.fixture
def grid(tmp_path: Path) -> str:
    """An experiment on two datasets, of which one has files of its own, and two models."""
    path = tmp_path / "grid.yaml"
    path.write_text(
        "datasets: [newsworld, squad]\nmodels: [nano, hub/large-1.5]\n"
        "streams: {split: test, count: 1}\nmethods: [closed_book]"
    )
    return str(path)


def test_an_entry_is_based_on_the_first_of_its_name_and_states_what_differs(write: Write, tmp_path: Path) -> None:
    entries = f"""
  - {{name: lora, like: {tmp_path}/base.yaml}}
  - {{name: lora, like: {tmp_path}/base.yaml, config: {{rank: 2, alpha: 1}}, space: {{}}}}
  - {{name: lora, like: {tmp_path}/base.yaml, arms: [empty], optional: true}}
"""
    first, second, third = load(write("ours", entries)).methods
    (_, plain, _) = load(str(tmp_path / "base.yaml")).methods
    assert first.model_dump() == plain.model_dump()
    changed = {"config": {"rank": 2, "targets": "mlp", "alpha": 1}, "space": {}}
    assert second.model_dump() == {**plain.model_dump(), **changed}
    assert third.model_dump() == {**plain.model_dump(), "arms": ["empty"], "optional": True}


def test_a_range_of_an_entry_is_taken_over_by_those_based_on_it(write: Write, tmp_path: Path) -> None:
    space = "space: {learning_rate: {low: 0.01, high: 1, log: true}}"
    base = write("ranges", f"[{{name: lora, {space}, seeds: [1, 2]}}]")
    (entry,) = load(write("ours", f"[{{name: lora, like: {base}}}]")).methods
    assert entry.space == {"learning_rate": Range(low=0.01, high=1, log=True)}
    assert entry.seeds == [1, 2]


def test_a_seed_of_the_command_line_is_the_only_one(write: Write) -> None:
    experiment = load(write("ours", "[{name: lora, seeds: [1, 2]}, closed_book]"))
    Overrides(seed=7, methods=["lora", "uniform"]).apply(experiment)
    assert experiment.seeds == [7] and [plan.seeds for plan in experiment.methods] == [None, None]
    assert Overrides(seed=7).remarks() == ["Changed for this run: seed 7."]


def test_trials_and_equal_compute_are_changes_for_one_command(write: Write) -> None:
    overrides = Overrides(trials=3, equal_compute=EqualCompute(method="uniform", steps=5))
    experiment = load("default")
    overrides.apply(experiment)
    assert experiment.tuning is not None and experiment.tuning.trials == 3
    assert experiment.equal_compute == EqualCompute(method="uniform", steps=5)
    assert overrides.remarks() == ["Changed for this run: trials 3, equal_compute 5."]
    with pytest.raises(BenchError, match="--trials: ours tunes nothing"):
        Overrides(trials=3).apply(load(write("ours", "[closed_book]")))


class TestVariations:
    def test_without_a_change_the_experiment_keeps_its_name(self) -> None:
        default = load("default")
        same = Overrides(streams=default.streams.count, model=default.model, device="cpu").vary(default)
        assert same == default

    def test_a_change_gives_a_name_with_a_hash_of_what_differs(self) -> None:
        changes = [{"streams": 1}, {"streams": 2}, {"documents": 1}, {"methods": ["bm25"]}, {"seed": 5}, {"trials": 1}]
        names = [Overrides(**change).vary(load("default")).name for change in changes]  # type: ignore[arg-type]
        assert len(set(names)) == len(changes)
        assert all(re.fullmatch(r"default\+[0-9a-f]{8}", name) for name in names)
        assert names == [Overrides(**change).vary(load("default")).name for change in changes]  # type: ignore[arg-type]

    def test_files_are_a_change_if_they_replace_those_of_the_data_set(self) -> None:
        files = {"test": ["a.json"]}
        assert Overrides(data_files=files).vary(load("real-squad")).name == "real-squad"
        assert Overrides(data_files=files).vary(load("default")).name != "default"

    def test_the_order_of_the_methods_does_not_count(self) -> None:
        one, other = (Overrides(methods=names).vary(load("default")) for names in (["bm25", "cmt"], ["cmt", "bm25"]))
        assert one.name == other.name and one.methods == other.methods[::-1]

    def test_a_name_takes_the_place_of_the_hash(self) -> None:
        default = load("default")
        assert Overrides().vary(default, "monday").name == Overrides(streams=1).vary(default, "monday").name
        assert Overrides().vary(default, "monday").name == "default+monday" and default == load("default")

    @pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "a+b", "a.b", "\x1b"])
    def test_a_name_that_is_no_word_is_refused(self, name: str) -> None:
        with pytest.raises(BenchError, match="letters, digits, _ and -"):
            Overrides().vary(load("default"), name)

    def test_the_other_pairs_have_boards_of_the_variation(self) -> None:
        varied = Overrides(streams=1).vary(load("bases"), "few")
        assert [one.name for one in varied.on_each_pair()] == ["bases+few", "bases+few-nano-plain"]

    def test_a_model_or_data_set_of_the_command_line_is_the_only_one(self, grid: str) -> None:
        experiment = load(grid)
        both = Overrides(model="hub/large-1.5", dataset="squad").vary(experiment, "one")
        assert [(one.name, one.dataset, one.model) for one in both.on_each_pair()] == [
            ("grid+one", "squad", "hub/large-1.5")
        ]
        models = [(one.name, one.model) for one in Overrides(dataset="squad").vary(experiment, "s").on_each_pair()]
        assert models == [("grid+s", "nano"), ("grid+s-large-1.5", "hub/large-1.5")]

    def test_files_count_only_where_they_replace_those_of_a_data_set(self, grid: str) -> None:
        experiment = load(grid)
        assert Overrides(data_files={"squad.test": ["a.json"]}).vary(experiment).name == "grid"
        assert Overrides(data_files={"newsworld.test": ["a.json"]}).vary(experiment).name != "grid"


class TestPairs:
    def test_each_pair_is_an_experiment_named_after_what_varies(self, grid: str, write: Write, tmp_path: Path) -> None:
        experiment = load(grid)
        assert (experiment.dataset, experiment.model) == ("newsworld", "nano"), "the first ones"
        assert [(one.name, one.dataset, one.model) for one in experiment.on_each_pair()] == [
            ("grid", "newsworld", "nano"),
            ("grid-newsworld-large-1.5", "newsworld", "hub/large-1.5"),
            ("grid-squad-nano", "squad", "nano"),
            ("grid-squad-large-1.5", "squad", "hub/large-1.5"),
        ]
        assert all(one.on_each_pair() == [one] for one in experiment.on_each_pair())
        entries = [plan for one in (experiment, *experiment.on_each_pair()) for plan in one.methods]
        assert len({id(plan) for plan in entries}) == len(entries), "what one of them changes, the others keep"
        assert [one.name for one in load(write("single", "[closed_book]")).on_each_pair()] == ["single"]

    def test_a_base_can_depend_on_the_data_set(self, grid: str) -> None:
        varied = Overrides(model="tuned/{dataset}/base").vary(load(grid), "t")
        assert [(one.name, one.model) for one in varied.on_each_pair()] == [
            ("grid+t", "tuned/newsworld/base"),
            ("grid+t-squad", "tuned/squad/base"),
        ]

    def test_an_entry_for_some_bases_runs_on_no_other_if_its_method_has_entries_for_these(self, tmp_path: Path) -> None:
        path = tmp_path / "sized.yaml"
        entries = "[{name: mac, bases: [nano, large]}, {name: mac, bases: [xl], config: {k: 1}}, closed_book]"
        path.write_text(
            "dataset: squad\nmodels: [nano, hub/large@1234, hub/xl, hub/other]\n"
            f"streams: {{split: test, count: 1}}\nmethods: {entries}"
        )
        experiment = load(str(path))
        found = {one.model: [(plan.name, plan.config) for plan in one.methods] for one in experiment.on_each_pair()}
        first, second, control = ("mac", {}), ("mac", {"k": 1}), ("closed_book", {})
        assert found == {
            "nano": [first, control],
            "hub/large@1234": [first, control],
            "hub/xl": [second, control],
            "hub/other": [first, control],
        }
        alone = "dataset: squad\nmodel: xl\nstreams: {split: test, count: 1}\nmethods: "
        for text, config in (
            (f"like: {path}\nmodel: nano", {}),
            (f"{alone}[{{name: mac, like: {path}}}]", {}),
            (f"{alone}[{{name: mac, like: {path}, bases: [xl]}}]", {"k": 1}),
        ):
            (tmp_path / "other.yaml").write_text(text)
            [other] = load(str(tmp_path / "other.yaml")).on_each_pair()
            assert other.methods[0].config == config
        path.write_text(path.read_text().replace("[xl]", "[nan]"))
        with pytest.raises(BenchError, match=r"sized.yaml: mac\.bases: there is no base 'nan'\. Did you mean nano\?"):
            load(str(path))

    def test_two_pairs_whose_names_join_alike_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "alike.yaml"
        lines = "datasets: [squad, a, a-b]\nmodels: [nano, b-c, c]"
        path.write_text(f"{lines}\nstreams: {{split: test, count: 1}}\nmethods: [closed_book]")
        with pytest.raises(BenchError, match="Two pairs of dataset and base would share the board alike-a-b-c"):
            load(str(path)).on_each_pair()

    def test_several_replace_the_one_of_another_file_and_one_replaces_several(self, grid: str, tmp_path: Path) -> None:
        (tmp_path / "one.yaml").write_text(f"like: {grid}\ndataset: squad")
        one = load(str(tmp_path / "one.yaml"))
        assert (one.dataset, one.datasets, one.models) == ("squad", [], ["nano", "hub/large-1.5"])
        (tmp_path / "several.yaml").write_text("like: default\ndatasets: [squad, newsworld]")
        several = load(str(tmp_path / "several.yaml"))
        assert (several.dataset, several.datasets, several.models) == ("squad", ["squad", "newsworld"], [])

    def test_files_go_to_the_data_set_that_they_name(self, grid: str) -> None:
        experiment = load(grid)
        Overrides(data_files={"squad.test": ["a.json"], "squad.train": ["b.json"]}).apply(experiment)
        files = {one.name: one.data_files for one in experiment.on_each_pair()}
        named = {"test": ["a.json"], "train": ["b.json"]}
        assert files["grid-squad-nano"] == files["grid-squad-large-1.5"] == named
        assert files["grid"] == files["grid-newsworld-large-1.5"] == {}
        single = load("real-squad")
        Overrides(data_files={"squad.test": ["a.json"]}).apply(single)
        assert single.on_each_pair()[0].data_files == {"test": ["a.json"]}

    @pytest.mark.parametrize(
        ("key", "message"),
        [
            ("test", "--data-files test: grid has several datasets. Write newsworld=FOLDER, or newsworld.test=FILE"),
            ("sqad.test", "--data-files sqad.test: grid has no dataset 'sqad'. Did you mean squad"),
        ],
    )
    def test_files_of_no_data_set_are_refused(self, grid: str, key: str, message: str) -> None:
        experiment = load(grid)
        Overrides(data_files={key: ["a.json"]}).apply(experiment)
        with pytest.raises(BenchError, match=message):
            experiment.on_each_pair()

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ("models: [a/x, b/x]", "models: two are named x and would share a board"),
            ("models: [nano, .]", "models: '.' does not end in a name"),
            ("models: [nano, models/..]", "models: 'models/..' does not end in a name"),
            ("model: nano\nmodels: [nano-plain, nano]", "model is not the first of models: state models alone"),
        ],
    )
    def test_pairs_without_a_name_of_their_own_are_refused(self, tmp_path: Path, lines: str, message: str) -> None:
        path = tmp_path / "wrong.yaml"
        path.write_text(f"dataset: squad\n{lines}\nstreams: {{split: test, count: 1}}\nmethods: [closed_book]")
        with pytest.raises(BenchError, match=re.escape(message)):
            load(str(path))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{name: uniform, like: BASE}", "like: base: base has no entry of uniform that states its settings"),
        ("{name: lora, like: OURS}", "like: ours: ours has no entry of lora that states its settings"),
        ("{name: lora, like: defalt}", "Did you mean default"),
    ],
)
def test_a_missing_base_of_an_entry_is_an_error(write: Write, tmp_path: Path, entry: str, message: str) -> None:
    resolved = entry.replace("BASE", str(tmp_path / "base.yaml")).replace("OURS", str(tmp_path / "ours.yaml"))
    with pytest.raises(BenchError, match=message):
        load(write("ours", f"[{resolved}]"))


def test_all_experiments_use_the_trained_weights_of_the_default() -> None:
    trained = {plan.name: plan.config["training"] for plan in load("default").methods if "training" in plan.config}
    assert len(trained) >= 3
    sharing = [load(name) for name in experiments() if name != "text-memory"]  # which compares ways of training
    plans = [plan for of in sharing if of.model == "nano" for plan in of.methods if plan.name in trained]
    others = [plan for plan in plans if "preset" not in plan.config]  # a preset is another method, with its own weights
    assert len(others) > len(trained)
    for plan in others:  # the base that the weights are made with is not a setting of theirs
        training = {key: value for key, value in plan.config["training"].items() if key != "base"}
        assert training in (trained[plan.name], {**trained[plan.name], "steps": 0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("streams: {split: test, count: 1, count: 2}\n", "the key 'count' is there twice"),
        ("dataset: squad\n", "the key 'dataset' is there twice"),
        ("methods: [uniform]\n", "the key 'methods' is there twice"),
        ("tuning: {1: 2}\n", "a key is not text: put it in quotes"),
        ("data_files: {test: [a], off: [b]}\n", "a key is not text: put it in quotes"),
        ("probes: [.nan]\n", "probes.0 = nan: Input should be a finite number"),
        ("probes: [.inf]\n", "probes.0 = inf: Input should be a finite number"),
        ("decoding: {diversity_penalty: .inf}\n", "diversity_penalty = inf: Input should be a finite number"),
        ("anchor: {questions: .inf}\n", "anchor.questions = inf: "),
        ("tuning: {split: test, count: 1}\n", "tuned on the validation split only"),
        ("tuning: {split: train, count: 1}\n", "tuned on the validation split only"),
        ("tuning: {count: 1, trials: 0}\n", "tuning.trials = 0: Input should be greater than or equal to 1"),
        ("name: ours.v2\n", "name = 'ours.v2': a name has letters, digits, _ and - only: rename the file, or state"),
        ("seed: 1\n", "seed: unknown key. Did you mean seeds"),
        ("seeds: []\n", "seeds: List should have at least 1 item"),
        ("seeds: [1, 2, 1]\n", "a seed is listed twice"),
        ("questions: first\n", "questions = 'first': retention is measured from the first probe on, so it needs two"),
        ("questions: first\nprobes: [0, 1]\n", "needs two or more, as in probes: "),
        ("questions: last\n", "questions = 'last': Input should be 'seen' or 'first'"),
        ("orders: 0\n", "orders = 0: Input should be greater than or equal to 1"),
        ("equal_compute: {method: uniform}\n", "equal_compute.steps: Field required"),
        ("methods: [{name: lora, grid: {learning_rate: [1]}}]\n", "methods.0.grid: unknown key"),
        (
            "methods: [{name: lora, space: {learning_rate: []}}]\n",
            "space.learning_rate.choices: List should have at least 1",
        ),
        ("methods: [{name: lora, space: {learning_rate: {low: 2, high: 1}}}]\n", "low must be below high, got 2 and 1"),
        ("methods: [{name: lora, space: {learning_rate: {low: 0, high: 1, log: true}}}]\n", "lies above 0, got low=0"),
        (
            "methods: [{name: lora, space: {learning_rate: 3}}]\n",
            "space.learning_rate.range = 3: Input should be a mapping",
        ),
        ("alow_overlap: true\n", "Did you mean allow_overlap"),
        ("allow_overlap: 3\n", "allow_overlap = 3: Input should be a valid boolean"),
        ("prompt: {question: 'Q:'}\n", "prompt.question = 'Q:': the template must contain {question} once"),
        ("prompt: {beginning: <s>}\n", "prompt.beginning: unknown key. Did you mean begin"),
        ("prompt: chat\n", "prompt = 'chat': Input should be a mapping"),
    ],
)
def test_a_wrong_experiment_is_refused_with_file_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(
        "dataset: newsworld\n"
        + ("" if text.startswith("methods: [{") else "methods: [closed_book]\n")
        + text
        + ("" if "streams" in text else "streams: {split: test, count: 1}\n")
    )
    with pytest.raises(BenchError, match=message) as error:
        load(str(path))
    assert "ours.yaml" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("methods", ["[]", "[{name: uniform, arms: []}]", "uniform", "[3]", "[[uniform]]", "[{1: 2}]"])
def test_methods_are_a_list_of_names_or_mappings(write: Write, methods: str) -> None:
    with pytest.raises(BenchError, match=r"methods|a key is not text"):
        load(write("ours", methods))


def test_the_case_with_a_number_as_a_key_is_a_sentence() -> None:
    with pytest.raises(BenchError, match=r"int_key\.yaml is not valid YAML: line 1, column 1: a key is not text"):
        load(str(ROOT / "tests" / "cases" / "experiments" / "int_key.yaml"))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("lora.rank=[1", "--set lora.rank=.1: the value is not valid YAML"),
        ("lora.rank={1: 2}", "a key is not text"),
        ("lora.rank={a: 1, a: 2}", "is there twice"),
        ("lora.rank=" + "[" * 5000, "nested too deeply"),
        ("lora.rank=2020-99-99", "month must be in"),
    ],
)
def test_a_value_of_the_command_line_that_is_not_yaml_is_a_sentence(
    write: Write, assignment: str, message: str
) -> None:
    experiment = load(write("ours", BASE))
    with pytest.raises(BenchError, match=message):
        experiment.set(assignment)


@pytest.mark.parametrize("preset", ["[1]", "{a: 1}", "null", "3", ".inf", "no_such_preset"])
def test_a_preset_that_is_no_name_is_a_sentence(write: Write, preset: str) -> None:
    experiment = load(write("ours", "[mac]"))
    experiment.set(f"mac.preset={preset}")
    with pytest.raises(BenchError, match=r"mac\.preset"):
        validate_config(load_method("mac"), experiment.methods[0].config)


def test_the_size_of_validation_streams_is_a_change_for_one_command(write: Write) -> None:
    experiment = load("default")
    overrides = Overrides(validation_documents=7)
    overrides.apply(experiment)
    assert experiment.tuning is not None and experiment.tuning.documents == 7
    assert overrides.remarks() == ["Changed for this run: validation_documents 7."]
    assert not overrides.is_empty and Overrides(assignments=[]).is_empty and not Overrides(seed=0).is_empty
    with pytest.raises(BenchError, match="--validation-documents: ours tunes nothing"):
        overrides.apply(load(write("ours", "[closed_book]")))


def test_an_experiment_starts_from_another_one(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.yaml" for name in ("first", "second", "third"))
    first.write_text("dataset: newsworld\nstreams: {split: test, documents: 9, count: 2}\nmethods: [bm25]\nseeds: [3]")
    second.write_text(f"like: {first}\nstreams: {{split: test, count: 1}}")
    third.write_text(f"like: {second}")
    experiment = load(str(second))
    assert (experiment.name, experiment.dataset, experiment.seeds) == ("second", "newsworld", [3])
    assert (experiment.streams.documents, experiment.streams.count) == (None, 1)
    assert [plan.name for plan in experiment.methods] == ["bm25"]
    first.write_text(f"{first.read_text()}\nname: one\nscales: {{tiny: {{seeds: [4]}}}}")
    assert [load(str(first), scale).name for scale in (None, "tiny")] == ["one", "one-tiny"]
    assert load(str(second)).name == "second", "a name is not inherited: the boards would replace each other"
    with pytest.raises(BenchError, match=r"third.yaml: like: .*second.yaml is itself like .*first.yaml"):
        load(str(third))


@pytest.mark.parametrize("name", ["segment-length", "context-window", "lora-rank", "model-size"])
def test_experiments_on_dynamic_evaluation_score_text_alone_and_tune_the_rate(name: str) -> None:
    experiment = load(name)
    assert experiment.probes == (0.0,) and not experiment.anchor.questions, "no question is asked"
    assert experiment.tuning is not None and experiment.tuning.metric == "token_nll"
    plans = [plan for plan in experiment.methods if plan.name != "closed_book"]
    assert all({*(plan.space or {})} == {"learning_rate"} - plan.config.keys() for plan in plans)
    assert len({str(validate_config(load_method(plan.name), plan.config)) for plan in plans}) == len(plans)


PAPERS = [name for name in experiments() if name.startswith("paper-")]


@pytest.mark.parametrize("scale", [None, "paper", "tiny", "small"])
@pytest.mark.parametrize("name", PAPERS)
def test_the_experiments_of_papers_have_valid_settings_at_every_scale(name: str, scale: str | None) -> None:
    experiment = load(name, scale)
    assert experiment.name == (name if scale in (None, "paper") else f"{name}-{scale}")
    for plan in experiment.methods:
        validate_config(load_method(plan.name), plan.config)
    rows = {plan.name for plan in experiment.methods}
    assert rows <= {plan.name for plan in load(name).methods} | {"closed_book", "gold_in_prompt"}


def test_a_number_of_probes_is_of_evenly_spaced_ones(tmp_path: Path) -> None:
    path = tmp_path / "even.yaml"
    for probes, expected in (("4", (0.25, 0.5, 0.75, 1.0)), ("1", (1.0,)), ("[0, 1]", (0.0, 1.0))):
        path.write_text(f"dataset: squad\nstreams: {{split: test, count: 1}}\nmethods: [closed_book]\nprobes: {probes}")
        assert load(str(path)).probes == expected
    for number in (6, 11, 60):
        path.write_text(path.read_text().rpartition(":")[0] + f": {number}")
        places = [documents_seen(probe, 10 * number) for probe in load(str(path)).probes]
        assert places == [10 * place for place in range(1, number + 1)]
    for wrong in ("0", "true", "-2"):
        path.write_text(path.read_text().rpartition(":")[0] + f": {wrong}")
        with pytest.raises(BenchError, match="probes"):
            load(str(path))


def test_a_scale_that_an_experiment_lacks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text("dataset: squad\nmodel: nano\nscales: 3\n")
    for name, scale, sentence in (
        ("paper-mac", "tini", "paper-mac has no scale 'tini'. Did you mean tiny?"),
        ("paper-mac", "zzz", "paper-mac has no scale 'zzz'. Known: paper, small, tiny."),
        ("default", "tiny", "default has no scale 'tiny'. It has one size only."),
        (str(tmp_path / "odd.yaml"), "tiny", "odd has no scale 'tiny'. It has one size only."),
    ):
        with pytest.raises(BenchError) as error:
            load(name, scale)
        assert str(error.value) == sentence
