"""How the embedded model is made: its settings, its training data, its training and its card.

Stands beside bench.data and imports the small files only.
"""
