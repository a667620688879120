"""What conv attention costs and gives (arXiv 2405.05219): its errors, its times, real models with it in every head."""
