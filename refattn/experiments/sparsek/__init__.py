"""What SparseK attention costs and gives inside a language model (arXiv 2406.16747)."""
