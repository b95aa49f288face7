"""GradualUnfreezing: the common case of FreezeScheduler."""

from __future__ import annotations

from lstm_freeze import FreezeSchedule
from lstm_freeze._checks import as_integer

from ._advance import Plateau
from ._scheduler import FreezeScheduler


class GradualUnfreezing(FreezeScheduler):
    """Train the head first, then in each epoch one more layer of the encoder too (ULMFiT).

    The layers are added from the output to the input, both directions of an RNN layer at once.
    Everything else is as in FreezeScheduler.

    Args:
        encoder: A target: what is unfrozen step by step.
        head: A target: what trains from the beginning.
        every_n_epochs: The length of a phase.
        check: When to compare all that is frozen: "step", "epoch" or None; see FreezeScheduler.
        advance: A Plateau, to begin the next phase when a metric has stopped improving.
        groups: The model's layers as you see them, input side first and the head last, in place of
            encoder and head: a list of targets for each.
        rest: What to do with all that is in no layer: "leave" it as you set it, or "freeze" it.

    Examples:
        >>> GradualUnfreezing(encoder="model.encoder", head="model.head").state_key
        "FreezeScheduler{'scope': ['model.encoder', 'model.head'], 'exclude': []}"
    """

    def __init__(
        self,
        encoder: str = "encoder",
        head: str = "head",
        every_n_epochs: int = 1,
        *,
        check: str | None = "step",
        advance: Plateau | None = None,
        groups: list[list[str]] | None = None,
        rest: str = "leave",
    ) -> None:
        """Check the arguments."""
        every = as_integer(every_n_epochs, "every_n_epochs", least=1)
        recipe = FreezeSchedule.recipe(
            "gradual_unfreezing",
            encoder=encoder,
            head=head,
            every=every,
            **({} if groups is None else {"groups": groups}),
            **({} if rest == "leave" else {"rest": rest}),
        )
        super().__init__(recipe, check=check, advance=advance)
