"""Values kept under the hash of what the model saw."""

from instdiff.store.keys import Keys
from instdiff.store.store import ColumnId, Store, check_writable, collect, default_root, info

__all__ = ["ColumnId", "Keys", "Store", "check_writable", "collect", "default_root", "info"]
