"""Rankings of a population of architectures: aggregation of proxies, correlation with the truth, selection.

Pure functions over numpy arrays. Throughout, NaN is a failed (or unknown) value and outside the population, while
infinities are data: -inf is the worst score there is, ranked last like any other value.
"""

from zcpipe.rank.aggregate import METHODS, aggregate, linear_rank, log_rank, size_regularised
from zcpipe.rank.contribution import leave_one_out
from zcpipe.rank.correlation import Correlation, correlate
from zcpipe.rank.intervals import Intervals, bootstrap
from zcpipe.rank.majority import vote, vote_accuracy
from zcpipe.rank.named import NAMED, Named
from zcpipe.rank.ranking import ranks
from zcpipe.rank.selection import top

__all__ = [
    "METHODS",
    "NAMED",
    "Correlation",
    "Intervals",
    "Named",
    "aggregate",
    "bootstrap",
    "correlate",
    "leave_one_out",
    "linear_rank",
    "log_rank",
    "ranks",
    "size_regularised",
    "top",
    "vote",
    "vote_accuracy",
]
