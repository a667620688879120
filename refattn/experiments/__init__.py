"""Questions that the papers ask or leave open, by paper: ``conv``, ``sparsek``, and both ``compared`` (ours).

``refattn experiment NAME`` runs one of them; ``refattn.experiments.catalogue`` knows the names.
"""
