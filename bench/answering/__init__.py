"""Answers to questions and their scores, the same for every method.

Offers ``prompts`` (the format), ``prompt_batch``, ``answers``, ``decoding``, ``metrics`` and ``hf_metrics``. May import
bench.contract and the rooms below it.
"""
