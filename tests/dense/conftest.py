"""What these tests draw from, `dense_definition`, can be imported."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
