"""Reading, holding and writing instruction data."""

from instdiff.data.load import load
from instdiff.data.pool import Pool
from instdiff.data.records import Reject
from instdiff.data.sample import Call, Message, Role, Sample, Turns
from instdiff.data.write import write_rejects

__all__ = ["Call", "Message", "Pool", "Reject", "Role", "Sample", "Turns", "load", "write_rejects"]
