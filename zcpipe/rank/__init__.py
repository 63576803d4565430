"""Rankings of a population of architectures: aggregation of proxies, correlation with the truth, selection.

Pure functions over numpy arrays. Throughout, NaN is a failed (or unknown) value and outside the population, while
infinities are data: -inf is the worst score there is, ranked last like any other value.
"""

from zcpipe.rank.aggregate import METHODS, aggregate, linear_rank, log_rank, ranks
from zcpipe.rank.correlation import Correlation, correlate
from zcpipe.rank.selection import top

__all__ = ["METHODS", "Correlation", "aggregate", "correlate", "linear_rank", "log_rank", "ranks", "top"]
