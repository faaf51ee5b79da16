"""The model card of the embedded model, as training writes it; what a board measures is added to it by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
datasets: [{dataset}]
---
# nano

A causal language model of {parameters} parameters ({layers} layers of width {width}, {vocabulary} tokens,
untied embeddings) that knows one small invented world, [{dataset}](../../../datasets/{dataset}/README.md). It
exists so that methods of online adaptation can be compared in minutes on a laptop; it is of no other use.

It answers a question from a document in its prompt, it remembers the facts of the `qa_train` documents, it
knows nothing of the other splits, and a gradient step on a new document makes it remember part of that
document.

## Formats

| | |
| --- | --- |
| document | `<|endoftext|>` text |
| question | `<|endoftext|>` question, then `" " + answer + <|endoftext|>` |
| document in the prompt | `<|endoftext|>` text + `"\\n"` + question, then `" " + answer + <|endoftext|>` |

The tokenizer is byte-level BPE and encodes any text; `<|endoftext|>` begins and ends a text and pads, and is
never added by the tokenizer itself. Each word of the world is one token, names of all splits included. The
embeddings of the names outside `qa_train` were never trained: they are as random as at the start.

## How it was made

`python run_bench.py train nano` repeats it from `recipe.yaml` beside this card: {steps} steps, {minutes}
minutes on two cores, seed {seed}. The weights are stored in bfloat16 and meant to be used in float32. All text
comes from the generator of the dataset, SHA-256 `{data_hash}`.

A step has two halves. *Known* entities, those of `qa_train`: their facts in newly worded documents, and in
closed-book questions. *New* entities, with random facts and a random vector in place of a name's embedding:
documents with questions behind them, and closed-book questions after one rehearsed update, a gradient step on
that vector by the next-token loss of the values in the document, differentiated through. The rehearsal is meant
to let so small a model store facts in one step of ordinary fine-tuning. Noise sentences come in over the first
part of training. No text, question or name of the splits `qa_validation`, `train`, `validation` and `test` is
used, beyond the names being in the tokenizer's vocabulary.

## Loss while training

Means over the steps since the row before, in nats per token (`curve.csv` has all rows). `known_text`,
`known_fact`: documents of known entities, and the values in them; `recall`: closed-book answers about them;
`new_text`: documents of new entities without their names; `read`: answers behind a document; `update`:
closed-book answers after the rehearsed update.

{curve}
"""


def card(facts: Mapping[str, str], curve: Sequence[Mapping[str, float]]) -> str:
    """The card's text. ``facts`` fill its slots; of ``curve`` about eight rows are shown, the last one included."""
    keys = list(curve[0])
    rows = list(curve[len(curve) % 4 :: max(1, len(curve) // 8)])
    rows += [] if curve[-1] in rows else [curve[-1]]
    table = [f"| {' | '.join(keys)} |", f"|{' --- |' * len(keys)}"]
    table += [f"| {' | '.join(f'{row[key]:g}' for key in keys)} |" for row in rows]
    return CARD.format(**facts, curve="\n".join(table))
