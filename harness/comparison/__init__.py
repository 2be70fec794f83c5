"""Two finished runs, compared: `compare(base, head, rules) -> Comparison`. Torch-free."""

from .calibration import Calibration
from .compare import compare
from .findings import Comparison, Finding, Side
from .rules import Rules, rules_of

__all__ = ["Calibration", "Comparison", "Finding", "Rules", "Side", "compare", "rules_of"]
