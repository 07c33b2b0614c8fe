"""The vocabulary. Methods and engine meet here and nowhere else; nothing here loads a model or reads data.

A method declares the columns that it needs as ``Signal``: a *measure* of a *view* of each row under a model *role*.
The planner turns signals into forward passes, the engine fills them, and the method computes with numpy.
"""

from instdiff.core.budget import Budget
from instdiff.core.columns import Floats, Reasons, Signals, vectors
from instdiff.core.method import (
    FILTERED,
    NEAR_DUPLICATE,
    NOT_REACHED,
    DetailPlot,
    Method,
    Scored,
    Scores,
    reasons,
)
from instdiff.core.settings import TEMPLATE_DATE, Log, ModelRef, Settings
from instdiff.core.signals import (
    Anchored,
    Asked,
    Brier,
    Choice,
    Classified,
    Column,
    Demonstrated,
    Embedding,
    Entropy,
    Folds,
    GradSketch,
    Joint,
    Judged,
    Leak,
    Length,
    Listed,
    MeanNll,
    Measure,
    Neurons,
    Nll,
    Noisy,
    Number,
    Pooled,
    Prompted,
    PromptOnly,
    Rank,
    ResponseOnly,
    Side,
    Signal,
    Text,
    Top1,
    View,
    WholeText,
    Windowed,
    Words,
)
