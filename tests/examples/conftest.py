"""Makes the scripts of examples/train importable, as they are when one of them is run."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples" / "train"))
