"""Conv attention near-linearly: compiled loops, the block transform, and what it would lose row by row (ours)."""
