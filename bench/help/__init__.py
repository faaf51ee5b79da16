"""What the command line says and writes for people: descriptions, a diagnosis of the machine, a skeleton of a method.

May import every other room of bench.
"""
