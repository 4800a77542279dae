"""The one line of a run that ends early: what ended it, and from where it resumes."""

from __future__ import annotations

from glioma_dist.errors import MemoryFullError, RunError, StopRequested


def with_checkpoint(ending: RunError, step: int) -> RunError:
    """The same error, which also says that the run resumes from `step`; from 0 there is no checkpoint."""
    if isinstance(ending, StopRequested):
        told = f", checkpoint saved at step {step}. Run the same command to resume." if step else ""
    else:
        # Sizes are settings of science: a run is not resumed with others.
        sizes = "; other sizes need another --out" if isinstance(ending, MemoryFullError) else ""
        told = f" (checkpoint saved at step {step}{sizes})" if step else ""
    said = type(ending)(f"{ending}{told}")
    said.is_shared = ending.is_shared
    return said


def without_checkpoint(ending: RunError, why: Exception, step: int, together: bool) -> RunError:
    """The same error, which also says that `step` could not be saved. together: whether all processes end with it.

    A requested stop becomes what prevented the checkpoint: the same command would not resume from `step`.
    """
    kind = type(why) if isinstance(ending, StopRequested) and isinstance(why, RunError) else type(ending)
    reason = "" if str(why) == str(ending) else f": {why}"
    said = kind(f"{ending}; a checkpoint of step {step} could not be saved{reason}")
    said.is_shared = together and isinstance(why, RunError) and why.is_shared
    return said
