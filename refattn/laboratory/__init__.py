"""What made the data that ships with the package; nobody needs it to use the package (ours).

| shipped | made by |
|---|---|
| the real heads, `refattn.testing.real_heads` | ``python -m refattn.laboratory.real_heads --out DIR`` |
| the reference vectors, `refattn.testing.vectors` | ``refattn vectors generate --out DIR`` |
| the scorers, `refattn.models.load_scorer` | ``python -m refattn.laboratory.scorers.finetune`` |
| the constants of conv attention's cost model | ``python -m refattn.laboratory.cost_model`` |
"""
