"""``run_bench.py tune-qa``: tune a base to answer questions, and write the adapter or the model."""

from __future__ import annotations

import inspect
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import hashing, machine, paths
from bench.answering import metrics
from bench.answering.answers import answer
from bench.answering.decoding import Decoding
from bench.answering.prompts import build_prompts
from bench.contract.method import Conditioning
from bench.data import recipe as data
from bench.data.documents import Episode, episodes, text_key
from bench.data.reader import DataFiles, split_entries, split_hash
from bench.errors import BenchError, nearest
from bench.files import check_writable, csv_text, curve_table, make_folder, write_tensors
from bench.lm import checkpoint
from bench.lm.base_model import BaseModel
from bench.paths import TUNED_ON, cache
from bench.qa_tuning import card, packing, recipe, train
from bench.qa_tuning.recipe import QaRecipe
from bench.qa_tuning.train import ADAPTER, Run, Say
from bench.settings import recipe_text

COMMAND = "python run_bench.py tune-qa"
CODE = [Path(inspect.getfile(module)) for module in (packing, recipe, train)]
"""The files whose code the result depends on."""


def tune(
    settings: QaRecipe,
    data_files: Mapping[str, DataFiles],
    out: Path | None = None,
    work: Path | None = None,
    device: str = "cpu",
    say: Say = lambda _: None,
) -> Path:
    """Tune the base of a recipe, and return the folder of the adapter or, without LoRA, of the model.

    ``data_files`` are the files of a dataset's splits, by dataset, for those whose own source is not used. Without
    ``out`` the folder is in the user's cache, named by all that the result depends on, and is made only once. A run
    that was killed continues from its checkpoint under ``work``, by default in the cache; with the same processor and
    number of threads the result is the same bits.

    Raises:
        BenchError: the base, the data or the device cannot be had, a file is given for a dataset that the recipe does
            not name, the checkpoint is damaged or of another run, ``out`` holds another base, or a folder cannot be
            written.
        Diverged: the gradient became NaN or infinite.
    """
    names = list(dict.fromkeys(settings.datasets))
    for name in data_files:
        if name not in names:
            raise BenchError(f"--data-files {name}: the recipe does not tune on {name!r}.{nearest(name, names)}")
    if out is not None:
        _check_out(out, settings)
    checkpoint.check_device(device)
    base = checkpoint.locate(settings.base, "BASE")
    hashes = {
        f"{name}.{split}": split_hash(name, split, data_files.get(name, {}))
        for name in names
        for split in ("qa_train", "qa_validation")
    }
    for key, value in hashes.items():
        if not value:
            name, _, split = key.rpartition(".")
            raise BenchError(
                f"{name} has no split {split!r}: give tune-qa the files with --data-files {name}=FOLDER, a folder with "
                f"a file for each split, named after it."
            )
    base_hash = checkpoint.identity(base)
    identity = hashing.digest(
        [settings.model_dump(mode="json", exclude={"base"}), base_hash, hashes, hashing.body_hash(CODE), device]
    )
    folder = out or cache() / "models" / f"{Path(settings.base).name}-qa-{identity[:12]}"
    if out is None and folder.is_dir():
        return folder
    work = (work or cache() / "tune-qa") / identity[:12]
    for path, option in ((out or folder.parent, "--out"), (work, "--work")):
        check_writable(path, option)
    parts = {
        split: {name: episodes(split_entries(name, split, data_files.get(name, {}))) for name in names}
        for split in ("qa_train", "qa_validation")
    }
    machine.keep_freed_memory()
    lm = BaseModel.load(str(base), device, settings.dtype, prompt=settings.prompt)
    lm.abilities.require(["float_weights"], settings.base, "tune-qa")
    run = Run(lm, settings, parts["qa_train"], parts["qa_validation"], identity, work / "checkpoint.safetensors")
    run.run(say)
    facts = {
        "name": folder.resolve().name,
        "base": settings.base,
        "base_hash": base_hash,
        "identity": identity,
        "command": _command(settings, data_files, device),
        "hashes": hashes,
    }
    if out is None:
        make_folder(folder, lambda empty: _write(run, facts, empty, say))
    else:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial") as staging:
            _write(run, facts, Path(staging), say)
            for path in sorted(Path(staging).iterdir()):
                path.replace(folder / path.name)
    shutil.rmtree(work)
    return folder


def _check_out(out: Path, settings: QaRecipe) -> None:
    """Check that a folder holds no base that the tuned one would spoil: of the other kind, or the one that is tuned."""
    other = paths.ADAPTER if settings.rank is None else paths.CONFIG
    spoilt = paths.BASES if out.resolve() == Path(settings.base).resolve() else (other,)
    if any((out / name).exists() for name in spoilt):
        raise BenchError(f"{out} holds another base, and a tuned one needs a folder of its own: name one with --out.")


def _command(settings: QaRecipe, data_files: Iterable[str], device: str) -> str:
    """The command that repeats a tuning with its recipe file."""
    options = ["--recipe recipe.yaml", *(f"--data-files {name}=FOLDER" for name in data_files)]
    return " ".join([COMMAND, settings.base, *options, *([] if device == "cpu" else [f"--device {device}"])])


def _write(run: Run, facts: Mapping[str, Any], folder: Path, say: Say) -> None:
    """Write the weights, recipe, curve and card into an empty folder."""
    save_weights(run, folder)
    say("Answering the questions of qa_validation")
    scores = [row for name, own in run.validation.items() for row in _scores(run.lm, name, own)]
    columns = dict.fromkeys(column for row in run.curve for column in row)
    curve = [{column: row.get(column, "") for column in columns} for row in run.curve]
    (folder / "recipe.yaml").write_text(recipe_text(run.recipe), encoding="utf-8")
    (folder / "curve.csv").write_text(csv_text(curve), encoding="utf-8")
    tuned_on = [
        {"split": split, "document": text_key(episode.document.text)}
        for split, of in (("qa_train", run.train), ("qa_validation", run.validation))
        for episode in itertools.chain(*of.values())
    ]
    (folder / TUNED_ON).write_text(csv_text(tuned_on), encoding="utf-8")
    (folder / "README.md").write_text(_card(run, facts, scores), encoding="utf-8")


def save_weights(run: Run, folder: Path) -> None:
    """Write the adapter in peft's format, in bfloat16, or the model; the run's model then has the weights as stored."""
    lm, settings = run.lm, run.recipe
    if settings.rank is None:
        lm.model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
        return
    with torch.no_grad():
        for parameter in run.parameters.values():
            parameter.copy_(parameter.bfloat16())
    config = lm.model.peft_config[ADAPTER]
    config.base_model_name_or_path = paths.absolute(settings.base, paths.models())
    config.inference_mode = True
    config.target_modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in run.parameters})
    config.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": parameter.detach().bfloat16().cpu()
        for name, parameter in run.parameters.items()
    }
    write_tensors(folder / "adapter_model.safetensors", tensors)


def _scores(lm: BaseModel, dataset: str, own: Sequence[Episode]) -> list[str]:
    """F1, exact match and share of answers that end, with and without the document, as rows of the card."""
    pairs = [(e.document, q, golds) for e in own for q, golds in zip(e.questions, e.answers, strict=True)]
    questions = [question for _, question, _ in pairs]
    rows = []
    for label, condition in (
        ("yes", Conditioning(text=[document.text for document, _, _ in pairs])),
        ("no", Conditioning()),
    ):
        decoding = Decoding()
        prompts = build_prompts(lm, questions, condition, decoding.max_new_tokens)
        written = answer(lm, prompts, decoding)
        segment = data.find(dataset).segment
        scores = [metrics.score(a.text, golds, segment) for a, (_, _, golds) in zip(written, pairs, strict=True)]
        f1, em = (sum(score[key] for score in scores) / len(scores) for key in ("f1", "em"))
        ended = sum(bool(a.ended) for a in written) / len(written)
        rows.append(f"| {dataset} | {len(pairs)} | {label} | {f1:.3f} | {em:.3f} | {ended:.3f} |")
    return rows


def _card(run: Run, facts: Mapping[str, Any], scores: Sequence[str]) -> str:
    settings, hashes = run.recipe, facts["hashes"]
    datasets = {name: data.find(name) for name in run.train}
    count = sum(parameter.numel() for parameter in run.parameters.values())
    kind = card.FULL.format(parameters=count)
    if settings.rank is not None:
        kind = card.LORA.format(rank=settings.rank, scale=settings.scale, parameters=count)
    rows = [
        f"| {name} | {settings.datasets.count(name)} of {len(settings.datasets)} "
        f"| {len(run.train[name]):,} documents, `{hashes[f'{name}.qa_train']}` "
        f"| `{hashes[f'{name}.qa_validation']}` | {dataset.licence} |"
        for name, dataset in datasets.items()
    ]
    credits = [
        f"- {dataset.title} ({dataset.licence}): {dataset.citation.strip()}"
        for dataset in datasets.values()
        if dataset.citation.strip() != "none"
    ]
    reading = (
        f"Each item was read in a row of its own, since {run.why_not_packed}."
        if run.why_not_packed
        else "All items on a document were read in one row,\nin which each sees its document and itself only."
    )
    stated = settings.prompt.model_dump(mode="json", exclude_defaults=True)
    shown = settings.model_dump(mode="json", exclude={"base", "prompt", "datasets", "closed_share"})
    return card.CARD.format(
        **facts,
        kind=kind,
        prompt="{" + ", ".join(f"{key}: {json.dumps(value)}" for key, value in stated.items()) + "}",
        documents=f"{run.step * settings.documents:,}",
        closed_share=settings.closed_share,
        datasets="\n".join(rows),
        credits="\n".join(["", *credits, ""] if credits else [""]),
        steps=f"{run.step:,}",
        minutes=run.seconds / 60,
        machine=machine.cpu_name() if run.lm.device.type == "cpu" else "GPU",
        best_step=run.best_step,
        reading=reading,
        settings="\n".join(f"| {name} | {value} |" for name, value in shown.items()),
        validation_documents=settings.validation_documents,
        curve="\n".join(curve_table(run.curve)),
        max_new_tokens=Decoding().max_new_tokens,
        answers="\n".join(scores),
    )
