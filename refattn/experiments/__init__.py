"""One module per question that the papers ask or leave open; each returns records (ours)."""
