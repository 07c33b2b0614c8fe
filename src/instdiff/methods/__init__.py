"""The methods, one file per paper, and the only list of them.

A method of your own is a file outside the package: ``--method ./mine.py:Margin`` (see docs/add-a-method.md).
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from instdiff.core import Method
from instdiff.errors import ConfigError, did_you_mean
from instdiff.methods.alpagasus import AlpaGasus
from instdiff.methods.combine import Blend, Then
from instdiff.methods.cosine_filter import CosineFilter
from instdiff.methods.deita import DEITA
from instdiff.methods.ds2 import DS2
from instdiff.methods.entropy import ResponseEntropy
from instdiff.methods.facility_location import FacilityLocation
from instdiff.methods.full import Full
from instdiff.methods.ifd import IFD
from instdiff.methods.instructdiff import InstructDiff
from instdiff.methods.kcenter import KCenter
from instdiff.methods.kmeans_quota import KMeansQuota
from instdiff.methods.longest import Longest
from instdiff.methods.mads import MADS
from instdiff.methods.miwv import MIWV
from instdiff.methods.nuggets import Nuggets
from instdiff.methods.perplexity import Perplexity
from instdiff.methods.random import Random
from instdiff.methods.rds import RDS
from instdiff.methods.selectit import SelectIT
from instdiff.methods.superfiltering import Superfiltering
from instdiff.methods.superfiltering_d import SuperfilteringD
from instdiff.methods.tshirt import TShirt
from instdiff.methods.zip import Zip

METHODS: dict[str, type[Method]] = {
    "random": Random,
    "full": Full,
    "longest": Longest,
    "perplexity": Perplexity,
    "entropy": ResponseEntropy,
    "ifd": IFD,
    "superfiltering": Superfiltering,
    "instructdiff": InstructDiff,
    "tshirt": TShirt,
    "selectit": SelectIT,
    "miwv": MIWV,
    "nuggets": Nuggets,
    "kcenter": KCenter,
    "facility_location": FacilityLocation,
    "kmeans_quota": KMeansQuota,
    "cosine_filter": CosineFilter,
    "superfiltering_d": SuperfilteringD,
    "zip": Zip,
    "mads": MADS,
    "deita": DEITA,
    "ds2": DS2,
    "rds": RDS,
    "alpagasus": AlpaGasus,
    "then": Then,
    "blend": Blend,
}


def resolve(name: str) -> type[Method]:
    """The class of a built-in name, or of ``path/to/file.py:Class``.

    Raises:
        ConfigError: unknown name, missing or faulty file, missing class, or a class that is no method.
    """
    if ":" not in name and not name.endswith(".py"):
        if name not in METHODS:
            raise ConfigError(f"unknown method '{name}'{did_you_mean(name, METHODS)}")
        return METHODS[name]
    file, _, attribute = name.rpartition(":")
    path = Path(file)
    if not file or not path.is_file():
        raise ConfigError(f"method '{name}': no file '{file or name}'; write it as path/to/file.py:Class")
    spec = importlib.util.spec_from_file_location(f"instdiff_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"method '{name}': {path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if found is None:
        raise ConfigError(f"method '{name}': {path} has no '{attribute}'{did_you_mean(attribute, vars(module))}")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"method '{name}': '{attribute}' is not a subclass of instdiff.Method")
    found.origin = name
    return found


__all__ = [
    "DEITA",
    "DS2",
    "IFD",
    "MADS",
    "METHODS",
    "MIWV",
    "RDS",
    "AlpaGasus",
    "Blend",
    "CosineFilter",
    "FacilityLocation",
    "Full",
    "InstructDiff",
    "KCenter",
    "KMeansQuota",
    "Longest",
    "Nuggets",
    "Perplexity",
    "Random",
    "ResponseEntropy",
    "SelectIT",
    "Superfiltering",
    "SuperfilteringD",
    "TShirt",
    "Then",
    "Zip",
    "resolve",
]
