"""Draws what a training did: runs/<name>/loss.png."""

from pathlib import Path

from ascend_patch.runs.figure import STYLE, save
from ascend_patch.runs.megatron_log import History

TRAIN, VALIDATION, AUXILIARY, GRADIENT, RATE = "#3566b8", "#d1495b", "#3b8c66", "#8a5fb0", "#c58b1b"


def draw(history: History, title: str, path: Path) -> None:
    """Write the picture: the losses large, below them auxiliary loss, gradient norm and learning rate."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    with plt.rc_context(STYLE):
        figure, axes = plt.subplot_mosaic(
            [["loss"] * 3, ["loss"] * 3, ["auxiliary", "gradient", "rate"]],
            figsize=(9, 6.5),
            layout="constrained",
        )
        figure.suptitle(title, fontsize=11, fontweight="bold")

        loss = axes["loss"]
        loss.plot(*history.series("lm loss"), color=TRAIN, linewidth=1.4, label="training")
        steps, values = history.validation_series()
        if steps:
            loss.plot(steps, values, "o-", color=VALIDATION, linewidth=1.2, markersize=5, label="validation")
            loss.annotate(
                f"{values[-1]:.2f}",
                (steps[-1], values[-1]),
                textcoords="offset points",
                xytext=(0, 8),
                ha="right",
                color=VALIDATION,
            )
        loss.set(xlabel="iteration", ylabel="loss (nats a token)")
        loss.legend(frameon=False)

        below = [
            ("auxiliary", "load_balancing_loss", "load-balancing loss (1 = even)", AUXILIARY),
            ("gradient", "grad norm", "gradient norm", GRADIENT),
            ("rate", "learning rate", "learning rate", RATE),
        ]
        for name, quantity, label, color in below:
            axes[name].plot(*history.series(quantity), color=color, linewidth=1.2)
            axes[name].set_title(label, fontsize=9)
            axes[name].set_xlabel("iteration")
            axes[name].xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes["rate"].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))

        save(figure, path)
        plt.close(figure)
