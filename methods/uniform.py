from bench import GradientMethod


class Uniform(GradientMethod):
    """Online fine-tuning on every document, with the same weight for every token.

    The standard baseline (Uniform in Hu et al. 2023): gradient steps on each document's mean next-token loss as it
    arrives. Costs one forward and one backward pass per step.
    """

    name = "uniform"
    paper = "hu2023camels"
