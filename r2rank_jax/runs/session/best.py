"""The best validation of a phase, whose policy is kept, and the early end once no better one comes."""

from __future__ import annotations

from r2rank_jax.phases import Best
from r2rank_jax.runs.session.log import say


class BestSoFar:
    """Compares the validations of a phase.

    Args:
        phase: for messages.
        patience: validations without a better one after which the phase ends; 0: it never does, and none is kept.
        best: of the commit that the phase resumes from.
        whole: never end early. A control must do all of its work.
    """

    def __init__(self, phase: str, patience: int, best: Best | None, *, whole: bool = False):
        self._phase, self._patience, self._whole = phase, patience, whole
        self.best = best if patience else None
        """For the phase's record; None where the policy of the last step counts."""

    @property
    def exhausted(self) -> bool:
        """Whether the phase should end."""
        return not self._whole and self.best is not None and self.best.later >= self._patience

    def is_best(self, step: int, value: float) -> bool:
        """Note a validation, and say whether its policy must be committed because it is the best so far.

        Args:
            step: of the validation.
            value: NDCG at the largest cut-off. An equal one is not better, so that the earliest policy is kept.
        """
        if not self._patience:
            return False
        if self.best is None or value > self.best.value:
            self.best = Best(step=step, value=value)
            return True
        self.best = Best(step=self.best.step, value=self.best.value, later=self.best.later + 1)
        if self.exhausted:
            say(f"{self._phase}: ends at step {step}: no validation since step {self.best.step} was better")
        return False
