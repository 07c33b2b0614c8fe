"""Values kept under the hash of what the model saw."""

from instdiff.store.check import Checked, Damage, check
from instdiff.store.keys import Keys
from instdiff.store.store import ColumnId, Store, check_writable, collect, default_root, info
from instdiff.store.trained import collect_trained, trained

__all__ = [
    "Checked",
    "ColumnId",
    "Damage",
    "Keys",
    "Store",
    "check",
    "check_writable",
    "collect",
    "collect_trained",
    "default_root",
    "info",
    "trained",
]
