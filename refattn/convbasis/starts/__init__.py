"""Choosing where segments start, by how near the basis comes to the logits (ours)."""
