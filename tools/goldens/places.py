"""Where the goldens lie and where the shared model comes from."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("ENDOSCOPE_SHARED", ROOT.parent / "shared"))
STORIES = SHARED / "models" / "stories260k"

MODELS = ROOT / "crates" / "endoscope-models" / "tests" / "goldens"
CAUSAL = ROOT / "crates" / "endoscope-causal" / "tests" / "goldens"
DICTIONARY = ROOT / "crates" / "endoscope-dictionary" / "tests" / "goldens"

# The extraction is a folder of its own, which `endoscope verify` runs without this one.
sys.path.insert(0, str(ROOT / "tools" / "reference"))
