"""Reference vectors: inputs and results of every operation, computed to 50 digits and rounded to float64."""

from refattn.testing.vectors.files import VectorCase, load_manifest, load_vectors

__all__ = ["VectorCase", "load_manifest", "load_vectors"]
