"""The one training loop. It knows stages, batches, schedules, refreshes and stopping, and nothing of any method.

A method is a sequence of stages. Most stages are :class:`Train`: an objective, minimised over batches of rows. An
objective is a weighted sum of terms; a term computes a loss from a :class:`Batch` and may be refreshed from the
embedding of the whole data set every so many steps. Data, losses and labels stay on the device; the host waits once
an epoch and once a refresh. :class:`Alternate` is training by turns, as adversaries do it.
"""

from fastdc.training.batch import Batch, Views, embed
from fastdc.training.checkpoint import Checkpoint
from fastdc.training.objective import Objective, Ramp, Schedule, Term, as_objective
from fastdc.training.rows import SourceRows
from fastdc.training.train import Alternate, LabelChange, Train, Turn
from fastdc.training.trainer import Record, Settings, Stage, Trainer, private_randomness

__all__ = [
    "Alternate",
    "Batch",
    "Checkpoint",
    "LabelChange",
    "Objective",
    "Ramp",
    "Record",
    "Schedule",
    "Settings",
    "SourceRows",
    "Stage",
    "Term",
    "Train",
    "Trainer",
    "Turn",
    "Views",
    "as_objective",
    "embed",
    "private_randomness",
]
