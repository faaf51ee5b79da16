from bench import GradientMethod


class Uniform(GradientMethod):
    """Online fine-tuning: gradient steps on every document as it arrives, each token weighing the same.

    The baseline of the field (Hu et al. 2023 call it Uniform). Costs one forward and one backward pass per step.
    """

    name = "uniform"
    paper = "hu2023camels"
