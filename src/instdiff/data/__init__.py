"""Reading, holding and writing instruction data."""

from instdiff.data.load import load
from instdiff.data.pool import Pool
from instdiff.data.readers import Reject
from instdiff.data.sample import Message, Role, Sample
from instdiff.data.write import write_rejects

__all__ = ["Message", "Pool", "Reject", "Role", "Sample", "load", "write_rejects"]
