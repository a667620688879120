"""Learning SparseK's scorers for SmolLM2-135M: ``python -m refattn.laboratory.scorers.finetune``."""
