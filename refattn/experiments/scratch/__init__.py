"""Decoders trained from scratch: sparse and linear attentions on equal footing."""
