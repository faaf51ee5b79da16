"""The card of a tuned base."""

from __future__ import annotations

CARD = """# {name}

`{base}`, tuned to answer questions in a few words, with and without a document in the prompt.
{kind}
An experiment asks it as it was tuned with `prompt: {prompt}`.

## Data

{documents} documents of `qa_train` were read, in turns; every question on each of them was asked with the document
in the prompt, and some also without: {closed_share:.0%} of all items. Only answer tokens and the end of text after
them count in the loss. `qa_validation` chose the step. No other split was used. `documents.csv` lists the documents by
the hash of their text; streams with one of them are refused.

| dataset | turns | `qa_train` (SHA-256) | `qa_validation` (SHA-256) | licence |
| --- | --- | --- | --- | --- |
{datasets}
{credits}
## Tuning

`{command}` repeats the tuning with `recipe.yaml` in this folder:
{steps} steps, {minutes:.0f} minutes on one {machine}. The weights are those of step {best_step}, which
has the lowest validation loss. {reading}
The identity of the base is `{base_hash}`,
that of this tuning `{identity}`.

| setting | value |
| --- | --- |
{settings}

## Loss

Nats per answer token on {validation_documents} documents or fewer of each `qa_validation`; `train_loss` is a mean over
the steps since the previous row. `curve.csv` has all rows.

{curve}

## Answers on `qa_validation`

Greedy decoding of the tuned weights as they are stored, on the same documents; F1 and exact match with SQuAD
normalisation, and the share of answers that end within {max_new_tokens} tokens. These questions chose the step, so they
are no test.

| dataset | questions | document in the prompt | F1 | exact match | ended |
| --- | --- | --- | --- | --- | --- |
{answers}
"""
LORA = (
    "It is a LoRA adapter of rank {rank} on all linear layers but the output layer, scale {scale:g}, in the format of\n"
    "peft: {parameters:,} parameters in bfloat16."
)
FULL = "All {parameters:,} parameters were tuned."
