from bench import GradientMethod


class Uniform(GradientMethod):
    """Online fine-tuning on every document, each token weighing the same.

    Gradient steps on the document's mean next-token loss as it arrives: the baseline of the
    field (Uniform in Hu et al. 2023). Costs one forward and one backward pass per step.
    """

    name = "uniform"
    paper = "hu2023camels"
