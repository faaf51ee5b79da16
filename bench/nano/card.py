"""The model card of the embedded model. Training writes it, and keeps the measurements that are added by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.files import curve_table

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
datasets: [{dataset}]
---
# {name}

A causal language model of {parameters} parameters ({layers} layers of width {width}, {vocabulary} tokens,
untied embeddings) of a small invented world, [{dataset}](../../../datasets/{dataset}/README.md). Its only use
is to compare online adaptation methods in minutes on a laptop.

It is trained to answer questions about a document in its prompt. It remembers the facts of the `qa_train` documents and
knows nothing of the other splits. {purpose}

## Formats

| | |
| --- | --- |
| document | `<|endoftext|>` text |
| question | `<|endoftext|>` question, then `" " + answer + <|endoftext|>` |
| document in the prompt | `<|endoftext|>` text + `"\\n"` + question, then `" " + answer + <|endoftext|>` |

The tokenizer is byte-level BPE and encodes any text. `<|endoftext|>` is the begin-of-text, end-of-text and
padding token; the tokenizer does not add it. Each word of the world is one token, and so is each name of every
split. The embeddings of names outside `qa_train` were never trained: they still have their random initial
values.

## Training

`{command}` repeats the training with `recipe.yaml` in this folder: {steps} steps,
{minutes} minutes on {machine}, seed {seed}. The weights are stored in bfloat16 and meant for use in float32.
All text comes from the generator of the dataset, SHA-256 `{data_hash}`.

Each step trains on two kinds of entities:

- *Known* entities, those of `qa_train`: newly worded documents that state their facts, and closed-book
  questions about these.
- *New* entities, with random facts and a random vector in place of the name's embedding: documents followed by
  questions{rehearsal}

{noise} No text or
question of the splits `qa_validation`, `train`, `validation` and `test` is used, and their names only as tokens of the
vocabulary.

## Training loss

Means over the steps since the previous row, in nats per token (`curve.csv` has all rows). `known_text`:
documents of known entities; `known_fact`: the values in them; `recall`: closed-book answers about known
entities; `new_text`: documents of new entities, except their names; `read`: answers after a document{update}.

{curve}
"""


REHEARSED = {
    "purpose": "After a gradient step on a new document it remembers part of that document.",
    "rehearsal": """\
, and closed-book questions after one rehearsed update. The update is a gradient step on that vector,
  on the next-token loss of the values in the document, and training differentiates through it. It is meant to
  let such a small model store facts in one step of ordinary fine-tuning.""",
    "update": """; `update`:
closed-book answers after the rehearsed update""",
}
PLAIN = {
    "purpose": """It is trained without the rehearsed
update of `nano`: nothing in its training prepares it for storing facts in a gradient step.""",
    "rehearsal": ".",
    "update": "",
}
MEASUREMENTS = "\n## Measurements\n"
"""The heading of what is written by hand, at the end of the card."""


def measurements(text: str) -> str:
    """The end of a card that is written by hand: all from :data:`MEASUREMENTS` on, or nothing."""
    _, heading, end = text.partition(MEASUREMENTS)
    return heading + end


def card(facts: Mapping[str, str], curve: Sequence[Mapping[str, float]]) -> str:
    """The generated text: ``facts`` fill its slots, and some rows of ``curve`` are shown."""
    parts = REHEARSED if "update" in curve[0] else PLAIN
    return CARD.format(**facts, **parts, curve="\n".join(curve_table(curve)))
