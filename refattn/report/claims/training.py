"""Claims about training that nothing here can check yet: listed, so that the ledger hides nothing."""

from refattn.report.ledger import Claim

_WHY = "this version has no backward pass of conv attention"

CLAIMS = (
    Claim(
        "conv.training-gradient",
        "arXiv 2405.05219, theorem on training (5.6)",
        "The gradient of the attention loss is computed in O(k d² n log n) with a k-conv basis.",
        "against the dense gradient, and by its exponent in n",
        None,
        why_not=_WHY,
    ),
    Claim(
        "conv.training-forward",
        "arXiv 2405.05219, theorem on training (5.6)",
        "The training loss is computed in O(k d n log n + T_mat(n, d, d)) with a k-conv basis.",
        "against the dense loss, and by its exponent in n",
        None,
        why_not=_WHY,
    ),
)
